"""Attributes in /sys, and the error where it is not mounted."""

import errno
from pathlib import Path

from dmthin.errors import Unavailable
from dmthin.kernel import mount
from dmthin.os_errors import os_failure

_FOLDER = Path("/sys")


def require_mounted() -> None:
    """Raise Unavailable unless /sys is mounted: without it no loop device looks bound, and no device looks used."""
    if not (mounts := mount.at(_FOLDER)) or mounts[-1].fs_type != "sysfs":
        raise Unavailable("/sys is not mounted", hint="run: mount -t sysfs sysfs /sys")


def attribute(path: str, doing: str) -> str | None:
    """Return an attribute without its newline, None if there is none; whether /sys is mounted is not looked at.

    Raise KernelError, which says what was being done, if a limit of open files hides it.
    """
    try:
        return (_FOLDER / path).read_text().rstrip("\n")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise os_failure(error, doing) from None
        return None
