"""A streaming tar reader: ustar, V7, GNU and PAX, with sparse files and extended attributes.

It is strict where tolerance would turn a damaged archive into an incomplete tree: an invalid header in the middle is
an error and not the end of the archive, and so is a truncated member. Like GNU tar, it accepts an archive without the
final blocks of zeros if the last member is complete. Global PAX headers are ignored, as in Docker. A number that no
inode can have makes no archive unusable: it is taken as Docker takes it.
"""

import logging
import os
from collections.abc import Iterator, Mapping

from dmthin.errors import InvalidValue
from dmthin.layers.entry import MODE_BITS, NO_DATA, NO_OWNER, NO_XATTRS, Entry, EntryType, Reader, shown
from dmthin.layers.extended import Extended
from dmthin.layers.foreign import foreign_format
from dmthin.layers.header import (
    BLOCK,
    LARGEST,
    NANOSECONDS,
    ZERO_BLOCK,
    Malformed,
    NoHeader,
    TarHeader,
    parse_header,
)
from dmthin.layers.sparse import read_gnu_map, read_map, validated
from dmthin.layers.stream import ByteStream
from dmthin.units import MIB

logger = logging.getLogger(__name__)

_MAX_TRAILER = 64 * MIB
"""Bytes skipped after the end of an archive. Padding to a tape record has at most a few MiB."""

MAX_EXTENSION = MIB
"""Limit in bytes of a long name or a PAX header, the same as Docker's (maxSpecialFileSize of Go's archive/tar)."""

MAX_ID = (1 << 32) - 2
"""The largest user or group id. For the next one, -1, chown(2) leaves the owner unchanged."""

_ID_MASK, _MAJOR_MASK, _MINOR_MASK = (1 << 32) - 1, (1 << 12) - 1, (1 << 20) - 1
"""The bits of an id and of a device number that the kernel takes of a larger number (uid_t, and mknod(2)'s dev_t)."""

_MAX_TIME = (1 << 62) * NANOSECONDS
_LABEL, _INCREMENTAL, _MULTI_VOLUME = b"V", b"D", b"M"
"""Types of GNU tar: the name of a volume, a directory with the list of its names, the rest of a split file."""

_EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))
_TYPES = {
    b"0": EntryType.FILE,
    b"\0": EntryType.FILE,
    b"7": EntryType.FILE,
    b"S": EntryType.FILE,
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHAR_DEVICE,
    b"4": EntryType.BLOCK_DEVICE,
    b"5": EntryType.DIRECTORY,
    _INCREMENTAL: EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}


class _MemberData:
    """The data of one member. `skip` passes over what has not been read.

    Both methods raise InvalidValue if the archive ends within the data.
    """

    __slots__ = ("_archive", "_left", "_name", "_stream")

    def __init__(self, stream: ByteStream, size: int, archive: str, name: bytes) -> None:
        self._stream = stream
        self._left = size
        self._archive = archive
        self._name = name

    def read(self, limit: int, /) -> bytes:
        if not self._left:
            return b""
        piece = self._stream.some(min(limit, self._left))
        if not piece:
            raise self._truncated()
        self._left -= len(piece)
        return piece

    def skip(self, padding: int) -> None:
        if self._stream.skip(self._left):
            raise self._truncated()
        self._left = 0
        self._stream.skip(padding)  # the padding of the last member may be missing, as in Go

    def _truncated(self) -> InvalidValue:
        return InvalidValue(f"{self._archive} is truncated: it ends within {shown(self._name)}")


class TarReader:
    """Iterates over the (entry, reader) pairs of an archive. A reader is valid until the next entry is requested.

    With `layer`, entries have the extended attributes that Docker and containerd read (SCHILY.xattr.*); otherwise also
    access control lists and what other archivers record. A layer may be empty, and may end after an extended header, as
    for Docker and containerd. Iteration raises InvalidValue, with the archive's name and the offset, for anything but a
    complete, valid tar; and what ByteStream raises.
    """

    def __init__(self, stream: ByteStream, name: str, *, layer: bool = False) -> None:
        self._stream = stream
        self._name = name
        self._layer = layer
        self._start = b""

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        extended: Extended | None = None
        while True:
            at = self._stream.offset
            try:
                block = self._next_block()
                if block is None:
                    if extended is not None and not self._layer:  # of a layer its digest says whether it is whole
                        raise Malformed("it ends after an extended header")
                    break
                header = parse_header(block)
                if header.type in _EXTENSIONS:
                    extended = self._extend(extended, header)
                    continue
                if header.type == _LABEL:
                    self._stream.skip(header.size + -header.size % BLOCK if 0 < header.size <= LARGEST else 0)
                    extended = None
                    continue
                entry, stored = self._entry(header, block, extended)
            except Malformed as error:
                raise self._invalid(error, at) from None
            extended = None
            if stored:
                data = _MemberData(self._stream, stored, self._name, entry.path)
                yield entry, data
                data.skip(-stored % BLOCK)
            else:
                yield entry, NO_DATA
        if not self._stream.drain(_MAX_TRAILER):
            raise InvalidValue(f"{self._name} has data after the end of the tar", hint="pass a single archive")

    def _invalid(self, error: Malformed, at: int) -> InvalidValue:
        if at or not isinstance(error, NoHeader):
            return InvalidValue(f"{self._name} is corrupt at byte {at} of the tar: {error}")
        hint = "pass a tar, plain or compressed with gzip, xz, zstd or bzip2"
        if what := foreign_format(self._start):
            return InvalidValue(f"{self._name} is {what}, which dmthin does not read", hint=hint)
        return InvalidValue(f"{self._name} is not a tar archive: {error}", hint=hint)

    def _next_block(self) -> bytes | None:
        """Return the next header block, None at the end of the archive. Raise Malformed."""
        first = self._stream.offset == 0
        block = self._stream.upto(BLOCK)
        if first:
            self._start = block
        if len(block) < BLOCK:
            if first and not block and self._layer:
                return None  # a layer without entries: no bytes at all are a tar for Docker and containerd
            if first:
                raise NoHeader("it is shorter than a header" if block else "it is empty")
            if block.strip(b"\0"):
                raise Malformed("it ends within a header")
            return None
        if block != ZERO_BLOCK:
            return block
        # POSIX ends an archive with two blocks of zeros; GNU tar and Go also accept one that is the last block. With
        # data after it, it is a hole in a damaged archive (Go: ErrHeader; GNU tar stops here with a warning).
        if self._stream.upto(BLOCK) not in (b"", ZERO_BLOCK):
            raise Malformed("a lone block of zeros followed by data")
        return None

    def _extend(self, extended: Extended | None, header: TarHeader) -> Extended | None:
        """Read the content of an extended header and add it to `extended`. Raise Malformed."""
        if not 0 <= header.size <= MAX_EXTENSION:
            raise Malformed(f"an extended header of {header.size} bytes, more than the limit of {MAX_EXTENSION}")
        data = self._stream.upto(header.size)
        if len(data) < header.size or self._stream.skip(-header.size % BLOCK):
            raise Malformed("it ends within an extended header")
        if header.type == b"g":
            return extended
        extended = extended or Extended(self._layer)
        extended.add(header.type, data)
        return extended

    def _entry(self, header: TarHeader, block: bytes, extended: Extended | None) -> tuple[Entry, int]:
        """Return the entry of a header, and how many bytes of data follow in the archive. Raise Malformed."""
        if extended is not None:
            header = extended.complete(header)
        if header.type == _MULTI_VOLUME:
            raise Malformed(f"it begins within {shown(header.name)}, in the middle of a multi-volume archive")
        kind = _TYPES.get(header.type)
        if kind is None:  # POSIX (pax, "typeflag") and GNU tar: a regular file
            logger.warning("%s has the unknown type %r: taken as a file", shown(header.name), header.type)
            kind = EntryType.FILE
        if header.type == b"\0" and header.name.endswith(b"/"):
            kind = EntryType.DIRECTORY  # V7 has no type flag for directories
        # Only files have data, whatever size the header of another type states (the same in Go and Python).
        has_data = kind is EntryType.FILE or header.type == _INCREMENTAL
        if has_data and not 0 <= header.size <= LARGEST:
            raise Malformed(f"{shown(header.name)} has the invalid size {header.size}")
        stored = header.size if has_data else 0
        size = stored if kind is EntryType.FILE else 0
        segments = None
        if kind is EntryType.FILE:
            if header.type == b"S":
                size, segments = read_gnu_map(self._stream, block, stored)
            elif extended is not None and (version := extended.sparse_version):
                size = extended.sparse_size()
                if version == "1.0":
                    stored, pairs = read_map(self._stream, stored)
                else:
                    pairs = extended.sparse_map()
                segments = validated(pairs, size, stored)
        entry = Entry(
            header.name,
            kind,
            header.mode & MODE_BITS,
            _id(header.uid),
            _id(header.gid),
            max(-_MAX_TIME, min(header.mtime_ns, _MAX_TIME)),
            size,
            header.link if kind in (EntryType.SYMLINK, EntryType.HARDLINK) else b"",
            _device(header) if kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE) else 0,
            self._xattrs(header.name, extended),
            segments,
        )
        return entry, stored

    def _xattrs(self, path: bytes, extended: Extended | None) -> Mapping[str, bytes]:
        if extended is None:
            return NO_XATTRS
        if self._layer or not extended.records:
            return extended.xattrs
        from dmthin.layers.foreign_xattrs import foreign_xattrs  # its imports would delay the start of each worker

        return {**foreign_xattrs(extended.records, path), **extended.xattrs}


def _id(number: int) -> int:
    """Return a user or group id as chown(2) takes it: 32 bits, -1 for "leave the owner"."""
    number &= _ID_MASK
    return NO_OWNER if number > MAX_ID else number


def _device(header: TarHeader) -> int:
    """Return the os.makedev() number of a device: the 12 and 20 bits that Docker passes to mknod(2)."""
    return os.makedev(header.major & _MAJOR_MASK, header.minor & _MINOR_MASK)
