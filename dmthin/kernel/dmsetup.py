"""Device-mapper by dmsetup(8): slow, but a line in the log that an administrator can read and repeat."""

import errno
import os
import re
from collections.abc import Sequence

from dmthin.errors import DmthinError, KernelError, ToolFailed
from dmthin.kernel import devnode, process
from dmthin.kernel.devicemapper import DeviceInfo, Target, check_name, check_uuid, request_failure
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.os_errors import DEVICE_MAPPER_NODE, explain, os_failure
from dmthin.steps import step

_ERRNO_OF_TEXT = {os.strerror(number): number for number in errno.errorcode}
_IOCTL_FAILED = re.compile(r"(?P<request>\w+) ioctl\b.*?failed: (?P<reason>[A-Z][^:]*?)(?= Command failed|$)")
_PLAIN_NAMES = ("--manglename", "none")
_NOT_FOUND = re.compile(r"Device (does not exist|\S+ not found)|No such device or address")


class Dmsetup:
    """dmsetup processes; implements `DeviceBuilder`.

    Where udevd runs, dmsetup waits for it and /dev/mapper has the usual links. Where it does not, set
    DM_DISABLE_UDEV=1 as for any other use of dmsetup; the environment's value is passed on.
    """

    def create(self, name: str, uuid: str, table: Sequence[Target]) -> DeviceInfo:
        arguments = create_arguments(check_name(name), check_uuid(uuid), table)
        with step("dm create", name):
            return self._run("create", name, arguments)

    def load(self, name: str, table: Sequence[Target]) -> DeviceInfo:
        arguments = load_arguments(check_name(name), table)
        with step("dm load", name):
            return self._run("load", name, arguments)

    def resume(self, name: str) -> DeviceInfo:
        arguments = ["resume", check_name(name)]
        with step("dm resume", name):
            return self._run("resume", name, arguments)

    def remove(self, name: str) -> bool:
        arguments = ["remove", check_name(name)]
        with step("dm remove", name):
            _dmsetup("remove", name, arguments)
        devnode.remove_unused()
        return True

    def _run(self, doing: str, name: str, arguments: Sequence[str]) -> DeviceInfo:
        _dmsetup(doing, name, arguments)
        # By ioctl: a second process for the state would double the price of each change.
        with IoctlDeviceMapper() as dm:
            return dm.info(name)


def create_arguments(name: str, uuid: str, table: Sequence[Target]) -> list[str]:
    """Return the words after `dmsetup` that make a device: also what a dry run prints."""
    return ["create", name, *(["--uuid", uuid] if uuid else []), "--table", _text(table)]


def load_arguments(name: str, table: Sequence[Target]) -> list[str]:
    """Return the words after `dmsetup` that load a table: also what a dry run prints."""
    return ["load", name, "--table", _text(table)]


def _text(table: Sequence[Target]) -> str:
    return "\n".join(map(str, table))


def _dmsetup(doing: str, name: str, arguments: Sequence[str]) -> None:
    try:
        with devnode.dm_control():
            process.run("dmsetup", *_PLAIN_NAMES, *arguments)
    except ToolFailed as failure:
        raise _translate(doing, name, failure) from None
    except OSError as error:
        raise os_failure(error, f"make {devnode.DM_CONTROL}", DEVICE_MAPPER_NODE) from None


def _translate(doing: str, name: str, failure: ToolFailed) -> DmthinError:
    """Return the error for what dmsetup has written: it gives the text of the errno, never the number."""
    words = failure.message
    if match := _IOCTL_FAILED.search(words):
        number = _ERRNO_OF_TEXT.get(match["reason"].strip(), 0)
        # `dmsetup create` with a table is three requests; the second may be the one that fails.
        return request_failure(number, "load" if match["request"] == "reload" else doing, name)
    if _NOT_FOUND.search(words):
        return request_failure(errno.ENXIO, doing, name)
    if "already exists" in words:
        return request_failure(errno.EBUSY, "create", name)
    if "open failed: No such device" in words or "open failed: No such file" in words:
        return explain(errno.ENODEV, "", DEVICE_MAPPER_NODE)
    if "Permission denied" in words or "Operation not permitted" in words:
        return request_failure(errno.EACCES, doing, name)
    return KernelError(words)
