"""Device-mapper by dmsetup(8): slow, but a line in the log that an administrator can read and repeat."""

import errno
import os
import re
from collections.abc import Sequence

from dmthin.errors import DmthinError, KernelError, NotFound, TimeLimit, ToolFailed
from dmthin.kernel import process
from dmthin.kernel.devicemapper import DeviceInfo, DeviceName, Target, Version, check_name, check_uuid, request_failure
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.os_errors import DEVICE_MAPPER_NODE, explain
from dmthin.steps import step

_ERRNO_OF_TEXT = {os.strerror(number): number for number in errno.errorcode}
_IOCTL_FAILED = re.compile(r"(?P<request>\w+) ioctl\b.*?failed: (?P<reason>[A-Z][^:]*?)(?= Command failed|$)")
_NAMES_AS_THEY_ARE = ("--manglename", "none")
_NOT_FOUND = re.compile(r"Device (does not exist|\S+ not found)|No such device or address")


class Dmsetup:
    """dmsetup processes; implements `DeviceMapper`.

    Where udevd runs, dmsetup waits for it and /dev/mapper has the usual links. Where it does not, set
    DM_DISABLE_UDEV=1 as for any other use of dmsetup; the environment's value is passed on.
    """

    def version(self) -> Version:
        text = self._run("version", None, "version")
        match = re.search(r"Driver version:\s*(\d+)\.(\d+)\.(\d+)", text)
        if match is None:
            raise explain(errno.ENODEV, "", DEVICE_MAPPER_NODE)
        return Version(*map(int, match.groups()))

    def target_versions(self) -> dict[str, Version]:
        found = re.findall(r"^(\S+)\s+v(\d+)\.(\d+)\.(\d+)$", self._run("list targets", None, "targets"), re.MULTILINE)
        return {name: Version(int(major), int(minor), int(patch)) for name, major, minor, patch in found}

    def create(self, name: str, uuid: str = "", table: Sequence[Target] = (), *, read_only: bool = False) -> DeviceInfo:
        arguments = create_arguments(check_name(name), check_uuid(uuid), table, read_only=read_only)
        with step("dm create", name):
            self._run("create", name, *arguments)
        return _now(name)

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> DeviceInfo:
        with step("dm load", name):
            self._run("load", name, *load_arguments(name, table, read_only=read_only))
        return _now(name)

    def clear(self, name: str) -> DeviceInfo:
        with step("dm clear", name):
            self._run("clear", name, "clear", name)
        return _now(name)

    def suspend(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        with step("dm suspend", name):
            self._run("suspend", name, "suspend", name, *_quiesce_options(flush, lock_fs))
        return _now(name)

    def resume(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        with step("dm resume", name):
            self._run("resume", name, "resume", name, *_quiesce_options(flush, lock_fs))
        return _now(name)

    def message(self, name: str, text: str, sector: int = 0) -> str:
        with step("dm message", name, text):
            answer = self._run(f"message {text!r} to", name, "message", name, str(sector), *text.split()).strip()
        # dmsetup takes the kernel's positive answer, "nobody has heard this", for a success.
        if not text.startswith("@") and not _now(name).live_table:
            raise NotFound(f"device-mapper: message {text!r} to {name}: the device has no live table")
        return answer

    def status(self, name: str, *, flush: bool = False) -> list[Target]:
        options = [] if flush else ["--noflush"]
        return _parse_targets(self._run("status", name, "status", *options, name))

    def table(self, name: str) -> list[Target]:
        return _parse_targets(self._run("table", name, "table", "--noflush", name))

    def info(self, name: str) -> DeviceInfo:
        return _parse_info(self._run("info", name, "info", name))

    def devices(self) -> list[DeviceName]:
        found = re.findall(r"^(.+)\t\((\d+)[:, ]+(\d+)\)$", self._run("list devices", None, "ls"), re.MULTILINE)
        return [DeviceName(name, os.makedev(int(major), int(minor))) for name, major, minor in found]

    def rename(self, name: str, new_name: str) -> None:
        with step("dm rename", name, new_name):
            self._run("rename", name, "rename", name, check_name(new_name))

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        with step("dm remove", name):
            self._run("remove", name, "remove", *(["--deferred"] if deferred else []), name)
        if not deferred:
            return True
        try:
            _now(name)
        except NotFound:
            return True
        return False

    def cancel_deferred_remove(self, name: str) -> None:
        self.message(name, "@cancel_deferred_remove")

    def wait(self, name: str, event_number: int, timeout: float) -> int:
        try:
            self._run("wait for", name, "wait", "--noflush", name, str(event_number), timeout=timeout)
        except TimeLimit:
            raise TimeLimit(f"no event of the device {name} within {timeout:g} s") from None
        return _now(name).event_number

    def _run(self, doing: str, name: str | None, *arguments: str, timeout: float = 60) -> str:
        if name is not None:
            check_name(name)
        try:
            return process.run("dmsetup", *_NAMES_AS_THEY_ARE, *arguments, timeout=timeout).stdout
        except ToolFailed as failure:
            raise _translate(doing, name or "", failure) from None


def _now(name: str) -> DeviceInfo:
    """What a change has made of a device. By ioctl: a second process would double the price of each change."""
    with IoctlDeviceMapper() as dm:
        return dm.info(name)


def create_arguments(name: str, uuid: str, table: Sequence[Target], *, read_only: bool = False) -> list[str]:
    """The words behind `dmsetup` that make a device: also what a dry run shows."""
    identity = ["--uuid", uuid] if uuid else []
    mode = ["--readonly"] if read_only else []
    return ["create", name, *identity, *mode, *(["--table", _text(table)] if table else ["--notable"])]


def load_arguments(name: str, table: Sequence[Target], *, read_only: bool = False) -> list[str]:
    """The words behind `dmsetup` that load a table."""
    return ["load", name, *(["--readonly"] if read_only else []), "--table", _text(table)]


def _text(table: Sequence[Target]) -> str:
    return "\n".join(map(str, table))


def _translate(doing: str, name: str, failure: ToolFailed) -> DmthinError:
    """The reason from dmsetup's words: it gives the text of the errno, never the number."""
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


def _parse_targets(text: str) -> list[Target]:
    targets = []
    for line in text.splitlines():
        fields = line.split(" ", 3)
        if len(fields) >= 3 and fields[0].isdigit():
            text_part = fields[3] if len(fields) > 3 else ""
            targets.append(Target(int(fields[0]), int(fields[1]), fields[2], text_part))
    return targets


def _parse_info(text: str) -> DeviceInfo:
    fields = dict(re.findall(r"^([^:\n]+):\s*(.*)$", text, re.MULTILINE))
    major, minor = (int(part) for part in fields["Major, minor"].split(","))
    state, tables = fields["State"], fields["Tables present"]
    return DeviceInfo(
        name=fields["Name"],
        uuid=fields.get("UUID", ""),
        dev=os.makedev(major, minor),
        open_count=int(fields["Open count"]),
        event_number=int(fields["Event number"]),
        target_count=int(fields["Number of targets"]),
        suspended="SUSPENDED" in state,
        read_only="READ-ONLY" in state,
        live_table="LIVE" in tables,
        inactive_table="INACTIVE" in tables,
        deferred_remove="DEFERRED REMOVE" in state,
    )


def _quiesce_options(flush: bool, lock_fs: bool) -> list[str]:
    return ([] if flush else ["--noflush"]) + ([] if lock_fs else ["--nolockfs"])
