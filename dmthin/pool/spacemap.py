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
_FREE_BYTES = re.compile(rb"\x00+")


@dataclass(frozen=True, slots=True)
class Index:
    """Where the space map's bitmaps are: `bitmaps[i]` is the metadata block for data blocks i * 16320 and on."""

    data_blocks: int
    bitmaps: tuple[int, ...]


class SpaceMap:
    """An open metadata device. Raises NeedsRepair for a block that is not what it should be."""

    def __init__(self, metadata: Path) -> None:
        self._path = metadata
        self._fd = os.open(metadata, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
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
        """The runs of free data blocks (first, count) in one bitmap, of `at_least` blocks or more, as it is now.

        Found by bytes of four blocks, then widened to the odd blocks at both ends.
        """
        bits = self._read(index.bitmaps[number], _BITMAP_SALT)[16:]
        first = number * ENTRIES_PER_BITMAP
        limit = min(ENTRIES_PER_BITMAP, index.data_blocks - first)
        for run in _FREE_BYTES.finditer(bits):
            start, end = run.start() * 4, min(run.end() * 4, limit)
            while start > 0 and _is_free(bits, start - 1):
                start -= 1
            while end < limit and _is_free(bits, end):
                end += 1
            if end - start >= max(at_least, 1):
                yield first + start, end - start

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
        got = os.preadv(self._fd, [self._page], block * METADATA_BLOCK)
        data = self._page[:METADATA_BLOCK]
        (checksum,) = struct.unpack_from("<I", data)
        (position,) = struct.unpack_from("<Q", data, 8)
        if got != METADATA_BLOCK or position != block or _crc32c(data[4:]) ^ salt != checksum:
            raise NeedsRepair(f"{self._path}: metadata block {block} is damaged", hint="run thin_check on it")
        return data


def _is_free(bits: bytes, entry: int) -> bool:
    return not bits[entry // 4] >> (entry % 4 * 2) & 3


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
