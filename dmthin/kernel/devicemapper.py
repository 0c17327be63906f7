"""Device-mapper as the rest of dmthin sees it: the values that describe devices, and two interfaces.

`DeviceMapper` is all of it; `dmthin.kernel.dmioctl.IoctlDeviceMapper` implements it by ioctl, for every path that a
container takes. `DeviceBuilder` is the part by which a pool is built and taken down; `dmthin.kernel.dmsetup.Dmsetup`
implements it by dmsetup(8), in commands that an administrator can read in the log and repeat. Words are those of the
kernel's Documentation/admin-guide/device-mapper.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

from dmthin.errors import DmthinError, InvalidValue
from dmthin.kernel import devnumber
from dmthin.os_errors import DEVICE_MAPPER, DEVICE_MAPPER_NAME, explain

NAME_LIMIT = 127
UUID_LIMIT = 128
_PLAIN = re.compile(r"[A-Za-z0-9#+.:=@_][A-Za-z0-9#+.:=@_-]*")
_RESERVED = frozenset({".", "..", "control"})


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the ioctl interface or of a target."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table or of a status: `start` and `length` in sectors; `text` is the target's own part."""

    start: int
    length: int
    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.start} {self.length} {self.type} {self.text}".rstrip()


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The state of a mapped device, as DM_DEV_STATUS reports it. `dev` is an `os.makedev` number."""

    name: str
    uuid: str
    dev: int
    open_count: int
    event_number: int
    target_count: int
    suspended: bool
    read_only: bool
    live_table: bool
    inactive_table: bool
    deferred_remove: bool

    @property
    def in_use(self) -> bool:
        """Whether the device is open or suspended. Otherwise no I/O is in flight that a snapshot must wait for."""
        return self.open_count > 0 or self.suspended

    @property
    def minor(self) -> int:
        """The number N of /dev/dm-N."""
        return os.minor(self.dev)

    @property
    def number(self) -> str:
        """`major:minor`, which tables take in place of a node."""
        return devnumber.written(self.dev)

    @property
    def node(self) -> str:
        """The node, which devtmpfs makes with or without udev."""
        return f"/dev/dm-{self.minor}"


@dataclass(frozen=True, slots=True)
class DeviceName:
    """One entry of the list of mapped devices."""

    name: str
    dev: int


def check_name(name: str) -> str:
    """Return the name of a device, if it is one that every program shows as it is. Raise InvalidValue.

    libdm writes other characters as `\\xNN` in the kernel's name: one device would have two names.
    """
    return _check("device name", name, NAME_LIMIT)


def check_uuid(uuid: str) -> str:
    """Return a device-mapper uuid, which may be empty, if every program shows it as it is. Raise InvalidValue."""
    return _check("device-mapper uuid", uuid, UUID_LIMIT) if uuid else ""


def _check(what: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise InvalidValue(f"the {what} {text!r} is longer than {limit} bytes")
    if not _PLAIN.fullmatch(text) or text in _RESERVED:
        raise InvalidValue(f"invalid {what} {text!r}", hint="use letters, digits and # + - . : = @ _")
    return text


class UdevRules(IntFlag):
    """What udev's rules are to leave out for a device's events: libdm's DM_UDEV_* flags."""

    ALL = 0
    DISABLE_SUBSYSTEM_RULES = 0x02
    """No LVM or other subsystem rules."""
    DISABLE_DISK_RULES = 0x04
    """No blkid and no /dev/disk/by-* links."""
    DISABLE_OTHER_RULES = 0x08
    """No rules beyond device-mapper's own, so no watch: the usual holder of a device that is to be removed."""
    PRIMARY_SOURCE = 0x40
    """The event comes from device-mapper itself; without it the rules call it spurious."""
    PRIVATE = 0x4E
    """For the volumes of containers: blkid, links and the watch are off."""


def request_failure(number: int, doing: str, device: str) -> DmthinError:
    """Return the error for the errno of a request that is named by `doing` (`create`, `load`, ...), about a device."""
    context = DEVICE_MAPPER_NAME if doing in ("create", "rename") else DEVICE_MAPPER
    return explain(number, f"device-mapper: {doing} {device}".rstrip(), context)


class DeviceBuilder(Protocol):
    """What builds a pool, changes its table and takes it down.

    Every method raises an error of dmthin.errors that names the device: InvalidValue for a name or a uuid that
    `check_name` or `check_uuid` does not take, NotFound where there is no such device, NotPermitted, Unavailable
    without device-mapper, and KernelInvalid or KernelError for what else the kernel refuses.
    """

    def create(self, name: str, uuid: str, table: Sequence[Target]) -> DeviceInfo:
        """Make a device with a live table. If the kernel refuses the table, no device is left.

        Raise AlreadyExists if the name or the uuid is taken, InUse or Unavailable for a device of the table.
        """

    def load(self, name: str, table: Sequence[Target]) -> DeviceInfo:
        """Load an inactive table; `resume` makes it live. Raise InUse or Unavailable for a device of the table."""

    def resume(self, name: str) -> DeviceInfo:
        """Make an inactive table live if there is one, and let I/O go on."""

    def remove(self, name: str) -> bool:
        """Remove a device, and return True. Raise InUse if it is open."""


class DeviceMapper(Protocol):
    """Mapped devices by name. Every method raises what those of `DeviceBuilder` raise.

    `devices` lists names too that `check_name` does not take, as the kernel has them.
    """

    def version(self) -> Version:
        """Return the version of the kernel's ioctl interface."""

    def target_versions(self) -> dict[str, Version]:
        """Return the targets that are loaded now."""

    def create(self, name: str, uuid: str = "", table: Sequence[Target] = (), *, read_only: bool = False) -> DeviceInfo:
        """Make a device, and with a `table` make that live. If the kernel refuses the table, no device is left.

        Raise AlreadyExists if the name or the uuid is taken, InUse or Unavailable for a device of the table.
        """

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> DeviceInfo:
        """Load an inactive table; `resume` makes it live. Raise InUse or Unavailable for a device of the table."""

    def clear(self, name: str) -> DeviceInfo:
        """Drop the inactive table."""

    def suspend(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        """Suspend I/O; with `flush` wait for what is in flight, with `lock_fs` freeze the file system first.

        Raise TimeLimit if a signal ends the wait.
        """

    def resume(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        """Make an inactive table live if there is one, and let I/O go on."""

    def message(self, name: str, text: str, sector: int = 0) -> str:
        """Send a message to a target and return its answer, mostly empty.

        Raise NotFound without a live table, or for a thin id that the pool does not have; AlreadyExists for one that
        it has; InUse for a thin id that is active; NeedsRepair if the pool is read-only or has failed; NoDataSpace.
        """

    def status(self, name: str, *, flush: bool = False) -> list[Target]:
        """Return the targets' status; with `flush` a thin-pool commits first, which can block."""

    def table(self, name: str) -> list[Target]:
        """Return the live table, empty without one."""

    def info(self, name: str) -> DeviceInfo:
        """Return the state of a device."""

    def devices(self) -> list[DeviceName]:
        """Return every mapped device."""

    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name. Raise AlreadyExists if that is taken."""

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Remove a device. Return True if it is gone, False if `deferred` left it to its last user.

        Raise InUse if it is open and the removal is not `deferred`.
        """

    def cancel_deferred_remove(self, name: str) -> None:
        """Keep a device whose removal waits for its last user."""

    def wait(self, name: str, event_number: int, timeout: float) -> int:
        """Return the device's event number once it differs from `event_number`.

        Raise TimeLimit after `timeout` seconds.
        """
