"""The data space map of a pool: which of its blocks nobody uses. A reader of the kernel's own format.

Source: drivers/md/dm-thin-metadata.c and drivers/md/persistent-data/ (little endian, blocks of 4 KiB). It reads past
the page cache, which does not see what the kernel writes to a live metadata device, and it is right only while the pool
is suspended: a suspend commits, and nothing is allocated until the resume.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import NeedsRepair
from dmthin.kernel import block
from dmthin.os_errors import os_failure
from dmthin.units import METADATA_BLOCK

ENTRIES_PER_BITMAP = (METADATA_BLOCK - 16) * 4
"""Data blocks that one bitmap block tells of: two bits for each."""

_SUPERBLOCK_MAGIC = 27022010
_BTREE_SALT = 121107
_BITMAP_SALT = 240779
_SUPERBLOCK_SALT = 160774
_NODE = struct.Struct("<IIQIIII")
_INTERNAL = 1
_INDEX_ENTRY = struct.Struct("<QII")
_USED = tuple(bytes(byte >> shift & 3 for shift in (0, 2, 4, 6)) for byte in range(256))
"""The four entries of a byte of a bitmap, one to a byte; 0 is free."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where the space map's bitmaps are: `bitmaps[i]` is the metadata block for data blocks i * 16320 and on."""

    data_blocks: int
    bitmaps: tuple[int, ...]


def is_metadata(path: Path) -> bool:
    """Whether a device or file begins with a thin-pool superblock."""
    head = block.read(path, METADATA_BLOCK)
    return len(head) == METADATA_BLOCK and struct.unpack_from("<Q", head, 32)[0] == _SUPERBLOCK_MAGIC


class SpaceMap:
    """An open metadata device. Raises NeedsRepair for a block that is not what it should be."""

    def __init__(self, metadata: Path) -> None:
        self._path = metadata
        try:
            self._fd = os.open(metadata, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise os_failure(error, f"open {metadata}") from None
        self._page = mmap.mmap(-1, METADATA_BLOCK)  # aligned, as O_DIRECT asks

    def close(self) -> None:
        os.close(self._fd)
        self._page.close()

    def __enter__(self) -> "SpaceMap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(self) -> Index:
        """The place of every bitmap, from the superblock on."""
        superblock = self._read(0, _SUPERBLOCK_SALT)
        (magic,) = struct.unpack_from("<Q", superblock, 32)
        if magic != _SUPERBLOCK_MAGIC:
            raise NeedsRepair(f"{self._path} holds no thin-pool metadata")
        data_blocks, _allocated, bitmap_root, _ref_counts = struct.unpack_from("<4Q", superblock, 64)
        places = [_INDEX_ENTRY.unpack(value)[0] for _key, value in self._leaves(bitmap_root, _INDEX_ENTRY.size)]
        return Index(data_blocks, tuple(places))

    def free_ranges(self, index: Index, number: int, at_least: int) -> Iterator[tuple[int, int]]:
        """The runs of free data blocks (first, count) in one bitmap, of `at_least` blocks or more, as it is now."""
        bits = self._read(index.bitmaps[number], _BITMAP_SALT)[16:]
        first = number * ENTRIES_PER_BITMAP
        used = b"".join(map(_USED.__getitem__, bits))[: max(0, index.data_blocks - first)]
        for run in re.finditer(rb"\x00{%d,}" % max(at_least, 1), used):
            yield first + run.start(), run.end() - run.start()

    def _leaves(self, block: int, value_size: int) -> Iterator[tuple[int, bytes]]:
        """Keys and values of a btree, in order."""
        node = self._read(block, _BTREE_SALT)
        _csum, flags, _number, count, most, size, _pad = _NODE.unpack_from(node)
        expected = 8 if flags & _INTERNAL else value_size
        if count > most or size != expected or _NODE.size + most * (8 + size) > METADATA_BLOCK:
            raise NeedsRepair(f"{self._path}: metadata block {block} is damaged")
        values = _NODE.size + 8 * most
        for entry in range(count):
            (key,) = struct.unpack_from("<Q", node, _NODE.size + 8 * entry)
            value = node[values + size * entry : values + size * (entry + 1)]
            if flags & _INTERNAL:
                yield from self._leaves(int.from_bytes(value, "little"), value_size)
            else:
                yield key, value

    def _read(self, block: int, salt: int) -> bytes:
        """One metadata block, verified by its checksum and by the position that it carries."""
        try:
            got = os.preadv(self._fd, [self._page], block * METADATA_BLOCK)
        except OSError as error:
            raise os_failure(error, f"read {self._path}") from None
        data = self._page[:METADATA_BLOCK]
        (checksum,) = struct.unpack_from("<I", data)
        (position,) = struct.unpack_from("<Q", data, 8)
        if got != METADATA_BLOCK or position != block or _crc32c(data[4:]) ^ salt != checksum:
            raise NeedsRepair(f"{self._path}: metadata block {block} is damaged", hint="run thin_check on it")
        return data


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _crc32c(data: bytes) -> int:
    """The Castagnoli checksum as the kernel's metadata has it: seeded with ones, not inverted at the end."""
    crc, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc
