"""The tar of a layer on its way in or out of a worker: its digest, and the compression of what is written."""

from typing import Protocol

from dmthin.errors import InvalidValue
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.tarwriter import FdWriter

GZIP, ZSTD = "gzip", "zstd"

_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3
"""The libraries' own defaults, and those of containerd's differ."""


class _Compressor(Protocol):
    """The interface of the compression objects of zlib and zstandard."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Hash(Protocol):
    """The interface of hashlib's objects."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class DigestStream(ByteStream):
    """A ByteStream that computes the digest of all bytes that it returns."""

    def __init__(self, raw: RawInput) -> None:
        super().__init__(raw)
        self._hash = _sha256()

    @property
    def digest(self) -> str:
        """The digest of the bytes returned so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def some(self, limit: int) -> bytes:
        """Return what `ByteStream.some` returns."""
        piece = super().some(limit)
        self._hash.update(piece)
        return piece


class LayerOutput:
    """Writes a tar to `output`, compressed with GZIP, ZSTD or not at all.

    `written` is the number of bytes accepted so far, before compression. Equal content becomes equal bytes: the gzip
    header has no time and no name. The library is loaded at once, since a worker can load none later. Raise
    InvalidValue for an unknown compression, and what `output` raises.
    """

    def __init__(self, output: FdWriter, compression: str = "", *, digest: bool = False) -> None:
        self._output = output
        self._compressor = _compressor(compression)
        self._hash = _sha256() if digest else None
        self.written = 0

    @property
    def digest(self) -> str:
        """The digest of the bytes accepted so far, empty if it is not computed."""
        return f"sha256:{self._hash.hexdigest()}" if self._hash else ""

    def write(self, data: bytes, /) -> None:
        """Write the next bytes of the tar."""
        self.written += len(data)
        if self._hash is not None:
            self._hash.update(data)
        self._output.write(self._compressor.compress(data) if self._compressor else data)

    def close(self) -> None:
        """Write what is buffered and the end of the compressed data."""
        if self._compressor is not None:
            self._output.write(self._compressor.flush())
        self._output.flush()


def _sha256() -> _Hash:
    import hashlib  # loads a large library, which most workers do not need

    return hashlib.sha256()


def _compressor(compression: str) -> _Compressor | None:
    """Return a new compressor, None for no compression. Raise InvalidValue."""
    if compression == GZIP:
        import zlib

        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    if compression == ZSTD:
        import zstandard

        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    if compression:
        raise InvalidValue(f"unknown compression {compression!r}", hint=f"use {GZIP}, {ZSTD} or none")
    return None
