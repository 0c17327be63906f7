"""The bytes of an archive, decompressed as they stream by: no seeking, bounded memory, no cut goes unseen."""

import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from dmthin.errors import InvalidValue, KernelError
from dmthin.units import KIB, MIB

CHUNK = 256 * KIB
"""Bytes asked of the input, and of a decompressor, at a time."""

XZ_MEMORY = 256 * MIB
"""What an xz stream may ask of its reader; `xz -9` asks for 65 MiB."""

_ZSTD_FEED = KIB
"""Bytes given to zstd at a time. Its binding cannot bound what one call gives back, and a block of 4 bytes
can stand for 128 KiB: so one call gives 32 MiB at most. Costs 0.5 s per GB beside feeding it 64 KiB."""

_BZIP2_STARTS = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
"""What follows `BZh` and a digit: a block, or the end of a stream without any."""

_LONGEST_MAGIC = 10


class Readable(Protocol):
    """All that is asked of an open archive; `read` may give less than it is asked for, `b""` at the end."""

    def read(self, size: int, /) -> bytes | None: ...


class _Decompressor(Protocol):
    """What bz2 and lzma offer; zlib and zstandard are brought to it below."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        data = self._inner.decompress(data or self._inner.unconsumed_tail, max_length)
        self._full = len(data) == max_length
        return data


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._input = b""
        self._at = 0

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._input)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._input[self._at :]

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._input, self._at = data, 0
        piece = self._input[self._at : self._at + _ZSTD_FEED]
        self._at += len(piece)
        return self._inner.decompress(piece)


def _new_xz() -> _Decompressor:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def _new_bzip2() -> _Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _own_error(form: str) -> type[Exception]:
    """What the library of a format, which is loaded by now, raises for data that is corrupt."""
    if form == "gzip":
        import zlib

        return zlib.error
    if form == "xz":
        import lzma

        return lzma.LZMAError
    if form == "zstd":
        import zstandard

        return zstandard.ZstdError
    return OSError


def _compression(start: bytes) -> tuple[str, Callable[[], _Decompressor]] | None:
    """The name and the reader of the format that begins with `start`; None: not compressed."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip", _Gzip
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz", _new_xz
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return "zstd", _Zstd  # the second is a skippable frame, which pzstd puts first
    if start.startswith(b"BZh") and start[4:10] in _BZIP2_STARTS:
        return "bzip2", _new_bzip2
    return None


class RawInput:
    """The archive as it lies in the file or comes through the pipe.

    `position` counts the bytes read; `total` is their number where that is known (a regular file), else None.
    """

    def __init__(self, source: Readable, name: str) -> None:
        self._source = source
        self.name = name
        self.position = 0
        self.total = _bytes_left(source)

    def chunk(self) -> bytes:
        """The next bytes, `b""` at the end. Raises KernelError where the input cannot be read."""
        try:
            data = self._source.read(CHUNK)
        except OSError as error:
            raise KernelError(f"{self.name} cannot be read: {error.strerror}", errno=error.errno or 0) from error
        if data is None:
            raise InvalidValue(f"{self.name} does not wait for its data", hint="give a blocking file or pipe")
        self.position += len(data)
        return data

    def at_least(self, count: int, start: bytes = b"") -> bytes:
        """`start` and what follows it until there are `count` bytes, fewer only at the end."""
        while len(start) < count and (more := self.chunk()):
            start += more
        return start


def _bytes_left(source: Readable) -> int | None:
    try:
        number: int = source.fileno()  # type: ignore[attr-defined]
        info = os.fstat(number)
        at: int = source.tell() if stat.S_ISREG(info.st_mode) else 0  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    return max(info.st_size - at, 0) if stat.S_ISREG(info.st_mode) else None


class ByteStream:
    """The decompressed bytes of an archive, in order.

    `offset` counts those given so far. Every method that reads raises InvalidValue for compressed data that
    is corrupt or cut, and KernelError where the input cannot be read.
    """

    def __init__(self, raw: RawInput) -> None:
        self.raw = raw
        self.offset = 0
        self._buffer = b""
        self._at = 0
        self._chunks: Iterator[bytes] | None = None

    def prepare(self) -> None:
        """Read the first bytes and load what decompresses them, so that no file need be opened from then on.

        Waits for the input; nothing is decompressed yet. Without it, the first reading does this.
        """
        if self._chunks is None:
            start = self.raw.at_least(_LONGEST_MAGIC)
            found = _compression(start)
            if found is None:
                self._chunks = _plain(self.raw, start)
            else:
                found[1]()
                self._chunks = _expanded(self.raw, start, *found)

    def some(self, limit: int) -> bytes:
        """The next bytes that are at hand, `limit` at most; `b""` at the end."""
        at = self._at
        piece = self._buffer[at : at + limit]
        if not piece:
            if self._chunks is None:
                self.prepare()
            assert self._chunks is not None
            self._buffer = next(self._chunks, b"")
            at = 0
            piece = self._buffer[:limit]
        self._at = at + len(piece)
        self.offset += len(piece)
        return piece

    def upto(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        piece = self.some(count)
        if len(piece) == count:
            return piece
        pieces = [piece]
        count -= len(piece)
        while count and piece:
            piece = self.some(count)
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; returns how many were missing."""
        while count and (piece := self.some(count)):
            count -= len(piece)
        return count

    def drain(self, limit: int) -> bool:
        """Read to the end, so that a checksum there is verified and a writer at a pipe is not broken off.

        False if more than `limit` bytes are left, which no archive has.
        """
        while piece := self.some(CHUNK):
            limit -= len(piece)
            if limit < 0:
                return False
        return True


def _plain(raw: RawInput, start: bytes) -> Iterator[bytes]:
    while start:
        yield start
        start = raw.chunk()


def _expanded(raw: RawInput, data: bytes, form: str, new: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """The content of one compressed stream after another: all four formats may be concatenated."""
    errors = (_own_error(form), OSError, EOFError, ValueError)
    while data:
        decompressor = new()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = raw.chunk()
                if not data:
                    raise InvalidValue(f"{raw.name} is cut: its {form} data ends too early")
            try:
                piece = decompressor.decompress(data, CHUNK)
            except errors as error:
                raise InvalidValue(f"{raw.name} has corrupt {form} data: {error}") from error
            data = b""
            if piece:
                yield piece
        data = _after_padding(raw, decompressor.unused_data)
        if data and ((found := _compression(data)) is None or found[0] != form):
            raise InvalidValue(f"{raw.name} has something else after its {form} data")


def _after_padding(raw: RawInput, data: bytes) -> bytes:
    """The start of the next stream behind zero padding (tapes, xz), `b""` at the end."""
    data = data.lstrip(b"\0")
    while not data and (more := raw.chunk()):
        data = more.lstrip(b"\0")
    return raw.at_least(_LONGEST_MAGIC, data) if data else data
