"""Streaming decompression of an archive: no seeking, bounded memory, truncation always detected."""

import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from dmthin.errors import InvalidValue, KernelError
from dmthin.units import KIB, MIB

CHUNK = 256 * KIB
"""Bytes requested at a time of the input, and of a decompressor."""

XZ_MEMORY = 256 * MIB
"""Bytes of memory that an xz stream may require for decompression; `xz -9` requires 65 MiB."""

_ZSTD_FEED = KIB
"""Bytes passed to zstd at a time. The binding cannot limit the output of one call, and a block of 4 bytes can
decompress to 128 KiB: so one call returns at most 32 MiB. Costs 0.5 s per GB compared with passing 64 KiB."""

_BZIP2_STARTS = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
"""What follows `BZh` and a digit: the magic of a block, or that of the end of a stream without blocks."""

_LONGEST_MAGIC = 10


class Readable(Protocol):
    """What an open archive must provide: `read` returns at most `size` bytes, `b""` at the end."""

    def read(self, size: int, /) -> bytes | None: ...


class _Decompressor(Protocol):
    """The decompressor interface of bz2 and lzma, to which the classes below adapt zlib and zstandard."""

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


def _error_type(form: str) -> type[Exception]:
    """Return the exception that the library of a format raises for corrupt data. The library is loaded already."""
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


def _detect(start: bytes) -> tuple[str, Callable[[], _Decompressor]] | None:
    """Return the name and the decompressor of the format whose magic `start` begins with; None: not compressed."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip", _Gzip
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz", _new_xz
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return "zstd", _Zstd  # the second is a skippable frame, which pzstd writes first
    if start.startswith(b"BZh") and start[4:10] in _BZIP2_STARTS:
        return "bzip2", _new_bzip2
    return None


class RawInput:
    """The archive before decompression, read from a file or a pipe.

    `position` is the number of bytes read so far; `total` the size in bytes of a regular file, else None.
    """

    def __init__(self, source: Readable, name: str) -> None:
        self._source = source
        self.name = name
        self.position = 0
        self.total = _bytes_left(source)

    def chunk(self) -> bytes:
        """Return the next bytes, `b""` at the end. Raise KernelError, and InvalidValue for a non-blocking input."""
        try:
            data = self._source.read(CHUNK)
        except OSError as error:
            raise KernelError(f"{self.name} cannot be read: {error.strerror}", errno=error.errno or 0) from error
        if data is None:
            raise InvalidValue(f"{self.name} is non-blocking", hint="pass a blocking file or pipe")
        self.position += len(data)
        return data

    def at_least(self, count: int, start: bytes = b"") -> bytes:
        """Return `start` and the bytes after it, at least `count` in total; fewer only at the end."""
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

    `offset` is the number of bytes returned so far. Every method that reads raises InvalidValue for compressed data
    that is corrupt or truncated, and KernelError if the input cannot be read.
    """

    def __init__(self, raw: RawInput) -> None:
        self.raw = raw
        self.offset = 0
        self._buffer = b""
        self._at = 0
        self._chunks: Iterator[bytes] | None = None

    def prepare(self) -> None:
        """Read the first bytes and import the decompressor for them, so that no file need be opened afterwards.

        Wait for the input; decompress nothing yet. The first read does this if `prepare` was not called.
        """
        if self._chunks is None:
            start = self.raw.at_least(_LONGEST_MAGIC)
            found = _detect(start)
            if found is None:
                self._chunks = _plain(self.raw, start)
            else:
                found[1]()
                self._chunks = _decompressed(self.raw, start, *found)

    def some(self, limit: int) -> bytes:
        """Return 1 to `limit` bytes, as many as are buffered; `b""` at the end."""
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
        """Return the next `count` bytes; fewer only at the end."""
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
        """Skip `count` bytes. Return how many of them were missing at the end."""
        while count and (piece := self.some(count)):
            count -= len(piece)
        return count

    def drain(self, limit: int) -> bool:
        """Read to the end, so that a final checksum is verified and the writer of a pipe gets no SIGPIPE.

        Return False if there are more than `limit` bytes.
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


def _decompressed(raw: RawInput, data: bytes, form: str, new: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Decompress one stream after another: all four formats allow concatenation. Raise InvalidValue."""
    errors = (_error_type(form), OSError, EOFError, ValueError)
    while data:
        decompressor = new()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = raw.chunk()
                if not data:
                    raise InvalidValue(f"{raw.name} is truncated: unexpected end of its {form} data")
            try:
                piece = decompressor.decompress(data, CHUNK)
            except errors as error:
                raise InvalidValue(f"{raw.name} has corrupt {form} data: {error}") from error
            data = b""
            if piece:
                yield piece
        data = _skip_padding(raw, decompressor.unused_data)
        if data and ((found := _detect(data)) is None or found[0] != form):
            raise InvalidValue(f"{raw.name} has trailing data after its {form} data")


def _skip_padding(raw: RawInput, data: bytes) -> bytes:
    """Return the start of the next stream after zero padding (tapes, xz), `b""` at the end."""
    data = data.lstrip(b"\0")
    while not data and (more := raw.chunk()):
        data = more.lstrip(b"\0")
    return raw.at_least(_LONGEST_MAGIC, data) if data else data
