"""What device-mapper is to the rest of dmthin: one interface, with two implementations behind it.

`dmthin.kernel.dmioctl.IoctlDeviceMapper` speaks the ioctl ABI and serves every path that a container takes.
`dmthin.kernel.dmsetup.Dmsetup` runs dmsetup(8) and serves the rare changes to pools, which an administrator can read
and repeat. Words are those of the kernel's Documentation/admin-guide/device-mapper.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

from dmthin.errors import DmthinError, InvalidValue
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
    """The state of a mapped device, as DM_DEV_STATUS tells it. `dev` is an `os.makedev` number."""

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
        """Whether somebody has the device open or has suspended it: without that there is no I/O to be held."""
        return self.open_count > 0 or self.suspended

    @property
    def minor(self) -> int:
        """The number N of /dev/dm-N."""
        return os.minor(self.dev)

    @property
    def number(self) -> str:
        """`major:minor`, the form for tables, which needs no node."""
        return f"{os.major(self.dev)}:{os.minor(self.dev)}"

    @property
    def node(self) -> str:
        """The node that devtmpfs makes at once, udev or not."""
        return f"/dev/dm-{self.minor}"


@dataclass(frozen=True, slots=True)
class DeviceName:
    """One entry of the list of mapped devices."""

    name: str
    dev: int


def check_name(name: str) -> str:
    """The name of a device, if it is one that every program shows as it is.

    libdm writes other characters as `\\xNN` in the kernel's name: one device would have two names. Raises InvalidValue.
    """
    return _check("device name", name, NAME_LIMIT)


def check_uuid(uuid: str) -> str:
    """The same for a device-mapper uuid, which may be empty."""
    return _check("device-mapper uuid", uuid, UUID_LIMIT) if uuid else ""


def _check(what: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise InvalidValue(f"the {what} {text!r} is longer than {limit} bytes")
    if not _PLAIN.fullmatch(text) or text in _RESERVED:
        raise InvalidValue(f"{text!r} is no {what}", hint="use letters, digits and # + - . : = @ _")
    return text


class UdevRules(IntFlag):
    """What udev's rules leave undone for a device's events (libdm's DM_UDEV_* flags)."""

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


class DeviceMapper(Protocol):
    """Mapped devices by name. Every method raises an error of dmthin.errors that names the device.

    A name that `check_name` does not take is InvalidValue for all of them; `devices` lists such names too, as the
    kernel has them.
    """

    def version(self) -> Version:
        """The kernel's ioctl interface. Raises Unavailable without device-mapper, NotPermitted without rights."""

    def target_versions(self) -> dict[str, Version]:
        """The targets that are loaded now."""

    def create(self, name: str, uuid: str = "", table: Sequence[Target] = (), *, read_only: bool = False) -> DeviceInfo:
        """Make a device, and with a `table` make that live; if the kernel refuses it, no device is left.

        AlreadyExists if the name or the uuid is taken.
        """

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> DeviceInfo:
        """Load an inactive table; `resume` makes it live."""

    def clear(self, name: str) -> DeviceInfo:
        """Drop the inactive table."""

    def suspend(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        """Stop I/O; with `flush` wait for what is under way, with `lock_fs` freeze the file system first."""

    def resume(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        """Make an inactive table live if there is one, and let I/O go on."""

    def message(self, name: str, text: str, sector: int = 0) -> str:
        """Send a message to a target and return its answer, mostly empty. NotFound without a live table."""

    def status(self, name: str, *, flush: bool = False) -> list[Target]:
        """The targets' status; with `flush` a thin-pool commits first, which can block."""

    def table(self, name: str) -> list[Target]:
        """The live table, empty without one."""

    def info(self, name: str) -> DeviceInfo:
        """The state of a device. NotFound where there is none."""

    def devices(self) -> list[DeviceName]:
        """Every mapped device."""

    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name. AlreadyExists if that is taken."""

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Remove a device: True if it is gone, False if `deferred` left it to its last user. InUse if open."""

    def cancel_deferred_remove(self, name: str) -> None:
        """Keep a device whose removal waits for its last user."""

    def wait(self, name: str, event_number: int, timeout: float) -> int:
        """The device's event number once it differs from `event_number`. TimeLimit after `timeout` seconds."""
