"""A streaming tar reader: ustar, V7, GNU and PAX, with sparse files and extended attributes.

It is strict where tolerance would turn a damaged archive into an incomplete tree: an invalid header in the middle is
an error and not the end of the archive, and so is a truncated member. Like GNU tar, it accepts an archive without the
final blocks of zeros if the last member is complete. Global PAX headers are ignored, as in Docker.
"""

import os
from collections.abc import Iterator

from dmthin.errors import InvalidValue
from dmthin.layers.entry import MODE_BITS, NO_DATA, NO_XATTRS, Entry, EntryType, Reader, shown
from dmthin.layers.extended import Extended, Segments
from dmthin.layers.header import (
    BLOCK,
    LARGEST,
    NANOSECONDS,
    ZERO_BLOCK,
    Malformed,
    TarHeader,
    parse_decimal,
    parse_header,
    parse_sparse,
    parse_sparse_size,
)
from dmthin.layers.stream import ByteStream
from dmthin.units import MIB

_MAX_TRAILER = 64 * MIB
"""Bytes skipped after the end of an archive. Padding to a tape record has at most a few MiB."""

MAX_EXTENSION = MIB
"""Limit in bytes of a long name or a PAX header, the same as Docker's (maxSpecialFileSize of Go's archive/tar)."""

MAX_SEGMENTS = 1 << 18
"""Limit of extents in one sparse file: about 40 MiB of memory."""

MAX_ID = (1 << 32) - 2
"""The largest user or group id. For the next one, -1, chown(2) leaves the owner unchanged."""

_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
_MAX_TIME = (1 << 62) * NANOSECONDS
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
        if self._stream.skip(self._left + padding):
            raise self._truncated()
        self._left = 0

    def _truncated(self) -> InvalidValue:
        return InvalidValue(f"{self._archive} is truncated: it ends within {shown(self._name)}")


class TarReader:
    """Iterates over the (entry, reader) pairs of an archive. A reader is valid until the next entry is requested.

    Iteration raises InvalidValue, with the archive's name and the offset, for anything but a complete, valid tar; and
    what ByteStream raises.
    """

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream = stream
        self._name = name

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        extended: Extended | None = None
        while True:
            at = self._stream.offset
            try:
                block = self._next_block()
                if block is None:
                    if extended is not None:
                        raise Malformed("it ends after an extended header")
                    break
                header = parse_header(block)
                if header.type in _EXTENSIONS:
                    extended = self._extend(extended, header)
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
        if at:
            return InvalidValue(f"{self._name} is corrupt at byte {at} of the tar: {error}")
        return InvalidValue(
            f"{self._name} is not a tar archive: {error}",
            hint="pass a tar, plain or compressed with gzip, xz, zstd or bzip2",
        )

    def _next_block(self) -> bytes | None:
        """Return the next header block, None at the end of the archive. Raise Malformed."""
        first = self._stream.offset == 0
        block = self._stream.upto(BLOCK)
        if len(block) < BLOCK:
            if block or first:
                raise Malformed("it ends within a header" if block else "it is empty")
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
        extended = extended or Extended()
        extended.add(header.type, data)
        return extended

    def _entry(self, header: TarHeader, block: bytes, extended: Extended | None) -> tuple[Entry, int]:
        """Return the entry of a header, and how many bytes of data follow in the archive. Raise Malformed."""
        if extended is not None:
            header = extended.complete(header)
        kind = _TYPES.get(header.type)
        if kind is None:
            raise Malformed(f"{shown(header.name)} has the unknown type {header.type!r}")
        if header.type == b"\0" and header.name.endswith(b"/"):
            kind = EntryType.DIRECTORY  # V7 has no type flag for directories
        if not (
            0 <= header.size <= LARGEST
            and 0 <= header.uid <= MAX_ID
            and 0 <= header.gid <= MAX_ID
            and -_MAX_TIME <= header.mtime_ns <= _MAX_TIME
        ):
            raise Malformed(f"{shown(header.name)} has an invalid size, owner or time")
        # Only files have data, whatever size the header of another type states (the same in Go and Python).
        size = stored = header.size if kind is EntryType.FILE else 0
        segments = None
        if kind is EntryType.FILE:
            if header.type == b"S":
                size, segments = self._sparse_gnu(block, stored)
            elif extended is not None and (version := extended.sparse_version):
                size = extended.sparse_size()
                if version == "1.0":
                    stored, pairs = self._sparse_map(stored)
                else:
                    pairs = extended.sparse_map()
                segments = _validated(pairs, size, stored)
        entry = Entry(
            header.name,
            kind,
            header.mode & MODE_BITS,
            header.uid,
            header.gid,
            header.mtime_ns,
            size,
            header.link if kind in (EntryType.SYMLINK, EntryType.HARDLINK) else b"",
            _device(header) if kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE) else 0,
            NO_XATTRS if extended is None else extended.xattrs,
            segments,
        )
        return entry, stored

    def _sparse_gnu(self, block: bytes, stored: int) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """Return the size and the extents of a file of GNU's type S. Raise Malformed.

        Its map continues in extension blocks between the header and the data.
        """
        size = parse_sparse_size(block)
        pairs, more = parse_sparse(block, continued=False)
        while more:
            block = self._stream.upto(BLOCK)
            if len(block) < BLOCK:
                raise Malformed("it ends within a sparse map")
            found, more = parse_sparse(block, continued=True)
            pairs += found
            if len(pairs) > MAX_SEGMENTS:
                raise Malformed(f"a sparse map of more than {MAX_SEGMENTS} extents")
        return size, _validated(pairs, size, stored)

    def _sparse_map(self, stored: int) -> tuple[int, Segments]:
        """Read the sparse map of version 1.0, decimal lines in whole blocks before the data. Raise Malformed.

        The first line is the number of extents; the offset and the length of each follow. Return what the map leaves
        of the `stored` bytes, and the extents.
        """
        numbers: list[int] = []
        wanted = -1  # numbers after the first line; -1: the first line has not been read
        rest = b""
        while wanted < 0 or len(numbers) < wanted:
            block = self._stream.upto(BLOCK)
            if len(block) < BLOCK or stored < BLOCK or len(rest) > BLOCK:
                raise Malformed("an unterminated sparse map")
            stored -= BLOCK
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                value = parse_decimal(line, "number in a sparse map")
                if wanted >= 0:
                    numbers.append(value)
                elif value > MAX_SEGMENTS:
                    raise Malformed(f"a sparse map of more than {MAX_SEGMENTS} extents")
                else:
                    wanted = 2 * value
        return stored, list(zip(numbers[:wanted:2], numbers[1:wanted:2], strict=True))


def _device(header: TarHeader) -> int:
    """Return the os.makedev() number of a device. Raise Malformed for more than the kernel's 12 and 20 bits."""
    if not (0 <= header.major <= _MAX_MAJOR and 0 <= header.minor <= _MAX_MINOR):
        raise Malformed(f"{shown(header.name)} has the invalid device number {header.major}:{header.minor}")
    return os.makedev(header.major, header.minor)


def _validated(pairs: Segments, size: int, stored: int) -> tuple[tuple[int, int], ...] | None:
    """Return the extents of a sparse file, None if it has no hole.

    Raise Malformed unless they are ascending, within `size`, and `stored` bytes in total.
    """
    segments = []
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > size:
            raise Malformed("an inconsistent sparse map")
        end = offset + length
        total += length
        if length:  # GNU tar marks the end of a file by an extent of length 0
            segments.append((offset, length))
    if total != stored or size > LARGEST:
        raise Malformed("a sparse map inconsistent with the sizes in its headers")
    return None if segments == [(0, size)] else tuple(segments)
