"""ioctl(2), with a line of the trace for each at `steps.REQUESTS`."""

import errno
import fcntl
import time
from typing import overload

from dmthin import steps


@overload
def ioctl(
    fd: int, request: int, argument: int | bytearray, name: object, device: object = "", flags: int = 0
) -> int: ...


@overload
def ioctl(fd: int, request: int, argument: bytes, name: object, device: object = "", flags: int = 0) -> bytes: ...


def ioctl(
    fd: int, request: int, argument: int | bytearray | bytes, name: object, device: object = "", flags: int = 0
) -> int | bytes:
    """Make a request to the driver of an open device. Raise OSError.

    Return what the call returns for a number or for a bytearray, which the kernel changes; for bytes, their new
    content. The other arguments are for the trace: the request's name, the device, and the flags in the argument.
    """
    if steps.verbosity < steps.REQUESTS:
        return fcntl.ioctl(fd, request, argument)
    begin = time.perf_counter()
    outcome = ""
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        outcome = f" failed: {errno.errorcode.get(error.errno or 0, error.errno)}"
        raise
    finally:
        what = f"{name} {device}".rstrip()
        marks = f" flags={flags:#x}" if flags else ""
        steps.report(f"ioctl: {what}{marks}{outcome} ({steps.milliseconds_since(begin)})")
