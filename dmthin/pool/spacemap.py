"""The data space map of a pool, which says which of its blocks are free: a reader of the kernel's own format.

Source: drivers/md/dm-thin-metadata.c and drivers/md/persistent-data/ (little endian, blocks of 4 KiB). It reads with
O_DIRECT, since the page cache does not see what the kernel writes to a live metadata device. What it reads is right
only while the pool is suspended: a suspend commits, and nothing is allocated until the resume.
"""

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from dmthin.errors import NeedsRepair
from dmthin.kernel import block
from dmthin.kernel.cstruct import U32, U64, CStruct
from dmthin.os_errors import os_failure
from dmthin.units import METADATA_BLOCK

ENTRIES_PER_BITMAP = (METADATA_BLOCK - 16) * 4
"""Data blocks in one bitmap block, at two bits each."""

_MAGIC = 27022010
_BTREE_SALT = 121107
_BITMAP_SALT = 240779
_SUPERBLOCK_SALT = 160774
_INTERNAL = 1
_USED = tuple(bytes(byte >> shift & 3 for shift in (0, 2, 4, 6)) for byte in range(256))
"""The four entries of each byte of a bitmap, one to a byte; 0 is free."""


class _Superblock(NamedTuple):
    """struct thin_disk_superblock, up to where its fields are of use here."""

    checksum: U32
    flags: U32
    block: U64
    uuid: Annotated[bytes, "16s"]
    magic: U64
    version: U32
    time: U32
    transaction_id: U64
    held_root: U64
    data_space_map_root: Annotated[bytes, "128s"]
    metadata_space_map_root: Annotated[bytes, "128s"]
    data_mapping_root: U64
    device_details_root: U64
    data_block_sectors: U32
    metadata_block_sectors: U32
    metadata_blocks: U64


class _SpaceMapRoot(NamedTuple):
    """struct disk_sm_root."""

    blocks: U64
    allocated: U64
    bitmap_root: U64
    ref_count_root: U64


class _NodeHeader(NamedTuple):
    """struct node_header of a btree, which `max_entries` keys of 8 bytes follow and then as many values."""

    checksum: U32
    flags: U32
    block: U64
    entries: U32
    max_entries: U32
    value_size: U32
    padding: U32


class _BlockHeader(NamedTuple):
    """What all kinds of metadata blocks begin with: their checksum and their own number."""

    checksum: U32
    flags: U32
    block: U64


class _IndexEntry(NamedTuple):
    """struct disk_index_entry: a bitmap, of which 16 bytes are its header."""

    block: U64
    free: U32
    none_free_before: U32


_SUPERBLOCK = CStruct("<", _Superblock)
_ROOT = CStruct("<", _SpaceMapRoot)
_NODE = CStruct("<", _NodeHeader)
_HEADER = CStruct("<", _BlockHeader)
_INDEX_ENTRY = CStruct("<", _IndexEntry)
_KEY = 8
"""Bytes of a key."""


@dataclass(frozen=True, slots=True)
class Index:
    """The bitmaps of the space map: `bitmaps[i]` is the metadata block for the data blocks from i * 16320 on."""

    data_blocks: int
    bitmaps: tuple[int, ...]


def is_metadata(path: Path) -> bool:
    """Return whether a device or file begins with a thin-pool superblock. Raise NotFound, NotPermitted."""
    head = block.read(path, METADATA_BLOCK)
    return len(head) == METADATA_BLOCK and _SUPERBLOCK.unpack(head).magic == _MAGIC


class SpaceMap:
    """An open metadata device."""

    def __init__(self, metadata: Path) -> None:
        """Open it. Raise NotFound, NotPermitted."""
        self._path = metadata
        try:
            self._fd = os.open(metadata, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise os_failure(error, f"open {metadata}") from None
        self._page = mmap.mmap(-1, METADATA_BLOCK)  # aligned, as O_DIRECT asks

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)
        self._page.close()

    def __enter__(self) -> "SpaceMap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(self) -> Index:
        """Return the place of every bitmap. Raise NeedsRepair for damaged metadata, or none."""
        superblock = _SUPERBLOCK.unpack(self._read(0, _SUPERBLOCK_SALT))
        if superblock.magic != _MAGIC:
            raise NeedsRepair(f"{self._path} holds no thin-pool metadata")
        root = _ROOT.unpack(superblock.data_space_map_root)
        entries = (_INDEX_ENTRY.unpack(value) for value in self._values(root.bitmap_root, _INDEX_ENTRY.size))
        return Index(root.blocks, tuple(entry.block for entry in entries))

    def free_ranges(self, index: Index, number: int, at_least: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of free data blocks (first, count) in one bitmap, of `at_least` blocks or more, as it is now.

        Raise NeedsRepair for a damaged bitmap.
        """
        bits = self._read(index.bitmaps[number], _BITMAP_SALT)[_HEADER.size :]
        first = number * ENTRIES_PER_BITMAP
        used = b"".join(map(_USED.__getitem__, bits))[: max(0, index.data_blocks - first)]
        for run in re.finditer(rb"\x00{%d,}" % max(at_least, 1), used):
            yield first + run.start(), run.end() - run.start()

    def _values(self, block: int, value_size: int) -> Iterator[bytes]:
        """Yield the values of a btree in the order of their keys."""
        node = self._read(block, _BTREE_SALT)
        header = _NODE.unpack(node)
        is_internal = bool(header.flags & _INTERNAL)
        size = header.value_size
        values = _NODE.size + _KEY * header.max_entries
        if (
            header.entries > header.max_entries
            or size != (_KEY if is_internal else value_size)
            or values + size * header.max_entries > METADATA_BLOCK
        ):
            raise NeedsRepair(f"{self._path}: metadata block {block} is damaged")
        for at in range(values, values + size * header.entries, size):
            value = node[at : at + size]
            if is_internal:
                yield from self._values(int.from_bytes(value, "little"), value_size)
            else:
                yield value

    def _read(self, block: int, salt: int) -> bytes:
        """Return a metadata block, verified by its checksum and by its own number in it. Raise NeedsRepair."""
        try:
            got = os.preadv(self._fd, [self._page], block * METADATA_BLOCK)
        except OSError as error:
            raise os_failure(error, f"read {self._path}") from None
        data = self._page[:METADATA_BLOCK]
        header = _HEADER.unpack(data)
        if got != METADATA_BLOCK or header.block != block or _crc32c(data[4:]) ^ salt != header.checksum:
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
    """Return the Castagnoli checksum as the kernel's metadata has it: seeded with ones, not inverted at the end."""
    crc, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc
