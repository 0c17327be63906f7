"""The device-mapper ioctl ABI, linux/dm-ioctl.h: request numbers, the header and the records behind it.

Only packing and unpacking; nothing here talks to the kernel. Sectors and kernel device numbers stay at this floor.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dmthin.kernel.devicemapper import DeviceInfo, DeviceName, Target, Version

HEADER = struct.Struct("=3I3Ii3IQ128s129s7x")
HEADER_SIZE = 312
TARGET_SPEC = struct.Struct("=QQiI16s")
INTERFACE = (4, 0, 0)
"""What we ask for: the kernel accepts any minor up to its own and answers with its own."""

assert HEADER.size == HEADER_SIZE


class Request(IntEnum):
    """The number of each ioctl. The code is _IOWR(0xfd, nr, 312) in the generic encoding (x86, arm, riscv)."""

    VERSION = 0
    LIST_DEVICES = 2
    CREATE = 3
    REMOVE = 4
    RENAME = 5
    SUSPEND = 6
    STATUS = 7
    TABLE_LOAD = 9
    TABLE_CLEAR = 10
    TABLE_STATUS = 12
    LIST_VERSIONS = 13
    MESSAGE = 14
    ARM_POLL = 16

    @property
    def code(self) -> int:
        return 0xC0000000 | HEADER_SIZE << 16 | 0xFD << 8 | self


class Flag:
    """The flags of the header, DM_*_FLAG: plain numbers, for an enum's operators cost more than the ioctls."""

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


@dataclass(frozen=True, slots=True)
class Header:
    """struct dm_ioctl. `event_number` carries udev flags on the way in and the event number on the way out."""

    data_size: int
    name: bytes = b""
    uuid: bytes = b""
    flags: int = 0
    event_number: int = 0
    target_count: int = 0
    open_count: int = 0
    dev: int = 0
    data_start: int = HEADER_SIZE
    version: tuple[int, int, int] = INTERFACE

    def pack(self) -> bytes:
        return HEADER.pack(
            *self.version,
            self.data_size,
            self.data_start,
            self.target_count,
            self.open_count,
            self.flags,
            self.event_number,
            0,
            self.dev,
            self.name,
            self.uuid,
        )

    @classmethod
    def unpack(cls, buffer: bytes | bytearray) -> "Header":
        fields = HEADER.unpack_from(buffer)
        return cls(
            version=fields[0:3],
            data_size=fields[3],
            data_start=fields[4],
            target_count=fields[5],
            open_count=fields[6],
            flags=fields[7],
            event_number=fields[8],
            dev=fields[10],
            name=fields[11].split(b"\0", 1)[0],
            uuid=fields[12].split(b"\0", 1)[0],
        )

    def info(self) -> DeviceInfo:
        return DeviceInfo(
            name=os.fsdecode(self.name),
            uuid=os.fsdecode(self.uuid),
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


def pack_table(table: Sequence[Target]) -> bytes:
    """The payload of TABLE_LOAD: each spec's `next` is its own length, padding to 8 bytes included."""
    packed = bytearray()
    for target in table:
        parameters = os.fsencode(target.text) + b"\0"
        parameters += b"\0" * (-len(parameters) % 8)
        size = TARGET_SPEC.size + len(parameters)
        packed += TARGET_SPEC.pack(target.start, target.length, 0, size, target.type.encode()) + parameters
    return bytes(packed)


def unpack_targets(buffer: bytes | bytearray, header: Header) -> Iterator[Target]:
    """The targets of a TABLE_STATUS reply: here `next` counts from the first spec."""
    at = header.data_start
    for _ in range(header.target_count):
        start, length, _status, following, kind = TARGET_SPEC.unpack_from(buffer, at)
        text = _string(buffer, at + TARGET_SPEC.size)
        yield Target(start, length, kind.split(b"\0", 1)[0].decode(), text)
        at = header.data_start + following


def pack_message(text: str, sector: int) -> bytes:
    """struct dm_target_msg: the sector that names the target, then the text."""
    return struct.pack("=Q", sector) + os.fsencode(text) + b"\0"


def unpack_devices(buffer: bytes | bytearray, header: Header) -> Iterator[DeviceName]:
    """The records of a LIST_DEVICES reply; an empty list is one record of device 0."""
    for at in _chain(buffer, header, offset=8):
        (dev,) = struct.unpack_from("=Q", buffer, at)
        if dev:
            yield DeviceName(_string(buffer, at + 12), _decode_dev(dev))


def unpack_versions(buffer: bytes | bytearray, header: Header) -> Iterator[tuple[str, Version]]:
    """The records of a LIST_VERSIONS reply."""
    for at in _chain(buffer, header, offset=0):
        yield _string(buffer, at + 16), Version(*struct.unpack_from("=3I", buffer, at + 4))


def unpack_answer(buffer: bytes | bytearray, header: Header) -> str:
    """The answer to a message, empty unless the target gave one."""
    return _string(buffer, header.data_start) if header.flags & Flag.DATA_OUT else ""


def _chain(buffer: bytes | bytearray, header: Header, *, offset: int) -> Iterator[int]:
    """Where each record begins; the u32 at `offset` in a record is the distance to the next one, 0 in the last."""
    at = header.data_start
    while at + offset + 4 <= min(header.data_size, len(buffer)):
        yield at
        (distance,) = struct.unpack_from("=I", buffer, at + offset)
        if not distance:
            return
        at += distance


def _string(buffer: bytes | bytearray, at: int) -> str:
    end = buffer.find(b"\0", at)
    return os.fsdecode(bytes(buffer[at : end if end >= 0 else len(buffer)]))


def _decode_dev(dev: int) -> int:
    """The kernel's huge_encode_dev number as an `os.makedev` number."""
    return os.makedev(dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00)
