"""The device-mapper ioctl ABI, linux/dm-ioctl.h: request numbers, the header and the records that follow it.

Only packing and unpacking; nothing here calls the kernel. Other modules see `os.makedev` numbers in place of the
kernel's encoding of a device number.
"""

import os
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Annotated, NamedTuple, TypeVar

from dmthin.kernel.cstruct import S32, U32, U64, CStruct, text
from dmthin.kernel.devicemapper import DeviceInfo, DeviceName, Target, Version

HEADER_SIZE = 312
INTERFACE = (4, 0, 0)
"""The version in each request: the kernel accepts any minor version up to its own, and answers with its own."""


class Request(IntEnum):
    """The ioctls, by the kernel's names without `DM_`, and their numbers.

    The code is _IOWR(0xfd, nr, 312) in the generic encoding (x86, arm, riscv).
    """

    VERSION = 0
    LIST_DEVICES = 2
    DEV_CREATE = 3
    DEV_REMOVE = 4
    DEV_RENAME = 5
    DEV_SUSPEND = 6
    DEV_STATUS = 7
    TABLE_LOAD = 9
    TABLE_CLEAR = 10
    TABLE_STATUS = 12
    LIST_VERSIONS = 13
    TARGET_MSG = 14
    DEV_ARM_POLL = 16

    @property
    def code(self) -> int:
        """The request of ioctl(2)."""
        return 0xC0000000 | HEADER_SIZE << 16 | 0xFD << 8 | self

    def __str__(self) -> str:
        return f"DM_{self.name}"


class Flag:
    """The flags of the header, DM_*_FLAG. Plain numbers, since an enum's operators take longer than the ioctls."""

    READ_ONLY = 1 << 0
    SUSPEND = 1 << 1
    STATUS_TABLE = 1 << 4
    ACTIVE_PRESENT = 1 << 5
    INACTIVE_PRESENT = 1 << 6
    BUFFER_FULL = 1 << 8
    SKIP_LOCK_FS = 1 << 10
    NO_FLUSH = 1 << 11
    DATA_OUT = 1 << 16
    DEFERRED_REMOVE = 1 << 17


class Header(NamedTuple):
    """struct dm_ioctl. `event_number` is for udev flags in a request, and the event number in an answer."""

    version_major: U32 = INTERFACE[0]
    version_minor: U32 = INTERFACE[1]
    version_patch: U32 = INTERFACE[2]
    data_size: U32 = HEADER_SIZE
    data_start: U32 = HEADER_SIZE
    target_count: U32 = 0
    open_count: S32 = 0
    flags: U32 = 0
    event_number: U32 = 0
    padding: U32 = 0
    dev: U64 = 0
    name: Annotated[bytes, "128s"] = b""
    uuid: Annotated[bytes, "129s"] = b""
    data: Annotated[bytes, "7s"] = b""

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _HEADER.pack(self)

    @classmethod
    def unpack(cls, buffer: bytes | bytearray) -> "Header":
        """Return the header at the beginning of a buffer; name and uuid are as long as their fields, with zeros."""
        return _HEADER.unpack(buffer)

    def info(self) -> DeviceInfo:
        """Return the state of the device, as most answers have it."""
        return DeviceInfo(
            name=os.fsdecode(text(self.name)),
            uuid=os.fsdecode(text(self.uuid)),
            dev=_decode_dev(self.dev),
            open_count=self.open_count,
            event_number=self.event_number,
            target_count=self.target_count,
            suspended=bool(self.flags & Flag.SUSPEND),
            read_only=bool(self.flags & Flag.READ_ONLY),
            live_table=bool(self.flags & Flag.ACTIVE_PRESENT),
            inactive_table=bool(self.flags & Flag.INACTIVE_PRESENT),
            deferred_remove=bool(self.flags & Flag.DEFERRED_REMOVE),
        )


_HEADER = CStruct("=", Header)
assert _HEADER.size == HEADER_SIZE


class TargetSpec(NamedTuple):
    """struct dm_target_spec, which the target's parameters follow. `next` is the offset of the next one in bytes."""

    start: U64
    length: U64
    status: S32
    next: U32
    type: Annotated[bytes, "16s"]


class TargetMessage(NamedTuple):
    """struct dm_target_msg, which the text of a message follows; the sector names the target."""

    sector: U64


class NameEntry(NamedTuple):
    """struct dm_name_list, which the name follows. `next` is the offset of the next one from here, 0 in the last."""

    dev: U64
    next: U32


class VersionEntry(NamedTuple):
    """struct dm_target_versions, which the name follows. `next` is the offset of the next from here, 0 in the last."""

    next: U32
    major: U32
    minor: U32
    patch: U32


_TARGET_SPEC = CStruct("=", TargetSpec)
_TARGET_MESSAGE = CStruct("=", TargetMessage)
_NAME_ENTRY = CStruct("=", NameEntry)
_VERSION_ENTRY = CStruct("=", VersionEntry)


def pack_table(table: Sequence[Target]) -> bytes:
    """Return the payload of TABLE_LOAD. Here `next` is a target's own length, padding to 8 bytes included."""
    packed = bytearray()
    for target in table:
        parameters = os.fsencode(target.text) + b"\0"
        parameters += b"\0" * (-len(parameters) % 8)
        spec = TargetSpec(target.start, target.length, 0, _TARGET_SPEC.size + len(parameters), target.type.encode())
        packed += _TARGET_SPEC.pack(spec) + parameters
    return bytes(packed)


def unpack_targets(buffer: bytes | bytearray, header: Header) -> Iterator[Target]:
    """Yield the targets of a TABLE_STATUS reply. Here `next` counts from the first target."""
    at = header.data_start
    for _ in range(header.target_count):
        spec = _TARGET_SPEC.unpack(buffer, at)
        yield Target(spec.start, spec.length, text(spec.type).decode(), _string(buffer, at + _TARGET_SPEC.size))
        at = header.data_start + spec.next


def pack_message(words: str, sector: int) -> bytes:
    """Return the payload of TARGET_MSG."""
    return _TARGET_MESSAGE.pack(TargetMessage(sector)) + os.fsencode(words) + b"\0"


def unpack_devices(buffer: bytes | bytearray, header: Header) -> Iterator[DeviceName]:
    """Yield the devices of a LIST_DEVICES reply, in which one entry of device 0 stands for an empty list."""
    for at, entry in _chain(_NAME_ENTRY, buffer, header):
        if entry.dev:
            yield DeviceName(_string(buffer, at + _NAME_ENTRY.size), _decode_dev(entry.dev))


def unpack_versions(buffer: bytes | bytearray, header: Header) -> Iterator[tuple[str, Version]]:
    """Yield the targets of a LIST_VERSIONS reply."""
    for at, entry in _chain(_VERSION_ENTRY, buffer, header):
        yield _string(buffer, at + _VERSION_ENTRY.size), Version(entry.major, entry.minor, entry.patch)


def unpack_answer(buffer: bytes | bytearray, header: Header) -> str:
    """Return the answer to a message, empty unless the target gave one."""
    return _string(buffer, header.data_start) if header.flags & Flag.DATA_OUT else ""


_Entry = TypeVar("_Entry", NameEntry, VersionEntry)


def _chain(kind: CStruct[_Entry], buffer: bytes | bytearray, header: Header) -> Iterator[tuple[int, _Entry]]:
    """Yield each entry of a list and where it begins, up to the one without a next."""
    at = header.data_start
    while at + kind.size <= min(header.data_size, len(buffer)):
        entry = kind.unpack(buffer, at)
        yield at, entry
        if not entry.next:
            return
        at += entry.next


def _string(buffer: bytes | bytearray, at: int) -> str:
    end = buffer.find(b"\0", at)
    return os.fsdecode(bytes(buffer[at : end if end >= 0 else len(buffer)]))


def _decode_dev(dev: int) -> int:
    """Return the kernel's huge_encode_dev number as an `os.makedev` number."""
    return os.makedev(dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00)
