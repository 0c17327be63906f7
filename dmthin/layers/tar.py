"""Reading a tar as a stream of entries: ustar, V7, GNU and PAX, with sparse files and extended attributes.

Strict where tolerance would make a short or wrong tree of a damaged archive: a header that does not verify in
the middle is an error and not the end, and so is a member that is cut. As GNU tar does, an archive without
the blocks of zeros at its end is accepted when its last member is whole. Global PAX headers are passed over,
as Docker does.
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
    Header,
    Malformed,
    parse_decimal,
    parse_header,
    parse_sparse,
    parse_sparse_size,
)
from dmthin.layers.stream import ByteStream
from dmthin.units import MIB

_MAX_TRAILER = 64 * MIB
"""Bytes behind an archive's end that are read over: tape blocks are padded, at most by some MiB."""

MAX_EXTENSION = MIB
"""Bytes of a long name or a PAX header; the limit of Docker too (maxSpecialFileSize of Go's archive/tar)."""

MAX_SEGMENTS = 1 << 18
"""Runs of data in one sparse file: some 40 MiB of memory."""

MAX_ID = (1 << 32) - 2
"""The greatest user or group id; the one above it tells chown(2) to change nothing."""

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


class _Data:
    """The data of one member; what is not read of it is skipped."""

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
            raise self._cut()
        self._left -= len(piece)
        return piece

    def skip(self, padding: int) -> None:
        if self._stream.skip(self._left + padding):
            raise self._cut()
        self._left = 0

    def _cut(self) -> InvalidValue:
        return InvalidValue(f"{self._archive} is cut: it ends within {shown(self._name)}")


class TarReader:
    """Iterates over the (entry, reader) pairs of an archive; a reader is good until the next is asked for.

    Raises InvalidValue, with the archive's name and the place, for all that is not a whole and sound tar.
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
                raise self._broken(error, at) from None
            extended = None
            if stored:
                data = _Data(self._stream, stored, self._name, entry.path)
                yield entry, data
                data.skip(-stored % BLOCK)
            else:
                yield entry, NO_DATA
        if not self._stream.drain(_MAX_TRAILER):
            raise InvalidValue(f"{self._name} does not end where its tar does", hint="give an archive and nothing more")

    def _broken(self, error: Malformed, at: int) -> InvalidValue:
        if at:
            return InvalidValue(f"{self._name} is corrupt at byte {at} of the tar: {error}")
        return InvalidValue(
            f"{self._name} is not a tar archive: {error}",
            hint="give a tar, plain or compressed with gzip, xz, zstd or bzip2",
        )

    def _next_block(self) -> bytes | None:
        """The next header block; None at the end of the archive."""
        first = self._stream.offset == 0
        block = self._stream.upto(BLOCK)
        if len(block) < BLOCK:
            if block or first:
                raise Malformed("it ends within a header" if block else "it is empty")
            return None
        if block != ZERO_BLOCK:
            return block
        # One block of zeros and then nothing is the sloppy end that GNU tar and Go accept. With more behind
        # it, it is a hole in a damaged archive (Go: ErrHeader; GNU tar would stop here with a warning).
        if self._stream.upto(BLOCK) not in (b"", ZERO_BLOCK):
            raise Malformed("a lone block of zeros, and more behind it")
        return None

    def _extend(self, extended: Extended | None, header: Header) -> Extended | None:
        """Read an extended header and add it to what is known of the next entry."""
        if not 0 <= header.size <= MAX_EXTENSION:
            raise Malformed(f"an extended header of {header.size} bytes where {MAX_EXTENSION} are the limit")
        data = self._stream.upto(header.size)
        if len(data) < header.size or self._stream.skip(-header.size % BLOCK):
            raise Malformed("it ends within an extended header")
        if header.type == b"g":
            return extended
        extended = extended or Extended()
        extended.add(header.type, data)
        return extended

    def _entry(self, header: Header, block: bytes, extended: Extended | None) -> tuple[Entry, int]:
        """The entry of a header, and the bytes of its data in the archive from here on."""
        if extended is not None:
            header = extended.complete(header)
        kind = _TYPES.get(header.type)
        if kind is None:
            raise Malformed(f"{shown(header.name)} has the unknown type {header.type!r}")
        if header.type == b"\0" and header.name.endswith(b"/"):
            kind = EntryType.DIRECTORY  # how V7 tars write one
        if not (
            0 <= header.size <= LARGEST
            and 0 <= header.uid <= MAX_ID
            and 0 <= header.gid <= MAX_ID
            and -_MAX_TIME <= header.mtime_ns <= _MAX_TIME
        ):
            raise Malformed(f"{shown(header.name)} has an impossible size, owner or time")
        # Types other than a file have no data, whatever size they state (Go and Python read them so too).
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
                segments = _checked(pairs, size, stored)
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
        """The size and the runs of a file of GNU's type S, whose map goes on in blocks after its header."""
        size = parse_sparse_size(block)
        pairs, more = parse_sparse(block, continued=False)
        while more:
            block = self._stream.upto(BLOCK)
            if len(block) < BLOCK:
                raise Malformed("it ends within a sparse map")
            found, more = parse_sparse(block, continued=True)
            pairs += found
            if len(pairs) > MAX_SEGMENTS:
                raise Malformed(f"a sparse file of more than {MAX_SEGMENTS} pieces")
        return size, _checked(pairs, size, stored)

    def _sparse_map(self, stored: int) -> tuple[int, Segments]:
        """Read the map of version 1.0, decimal lines before the data; first what is left of `stored` then."""
        numbers: list[int] = []
        wanted = -1
        rest = b""
        while wanted < 0 or len(numbers) < wanted:
            block = self._stream.upto(BLOCK)
            if len(block) < BLOCK or stored < BLOCK or len(rest) > BLOCK:
                raise Malformed("a sparse map does not end")
            stored -= BLOCK
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                value = parse_decimal(line, "number in a sparse map")
                if wanted >= 0:
                    numbers.append(value)
                elif value > MAX_SEGMENTS:
                    raise Malformed(f"a sparse file of more than {MAX_SEGMENTS} pieces")
                else:
                    wanted = 2 * value
        return stored, list(zip(numbers[:wanted:2], numbers[1:wanted:2], strict=True))


def _device(header: Header) -> int:
    if not (0 <= header.major <= _MAX_MAJOR and 0 <= header.minor <= _MAX_MINOR):
        raise Malformed(f"{shown(header.name)} has the impossible device number {header.major}:{header.minor}")
    return os.makedev(header.major, header.minor)


def _checked(pairs: Segments, size: int, stored: int) -> tuple[tuple[int, int], ...] | None:
    """The runs of a sparse file, proven to be in order and to hold what is stored; None: there is no hole."""
    segments = []
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > size:
            raise Malformed("a sparse map that contradicts itself")
        end = offset + length
        total += length
        if length:  # GNU tar marks the end of a file by a run of no length
            segments.append((offset, length))
    if total != stored or size > LARGEST:
        raise Malformed("a sparse map that contradicts its sizes")
    return None if segments == [(0, size)] else tuple(segments)
