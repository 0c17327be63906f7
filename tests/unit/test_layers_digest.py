"""The tar of a layer with its digest, and compressed: what is written and what is read are the same tar."""

import gzip
import hashlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from dmthin.errors import InvalidValue
from dmthin.layers.digest import GZIP, ZSTD, DigestStream, LayerOutput
from dmthin.layers.stream import RawInput
from dmthin.layers.tarwriter import FdWriter
from dmthin.units import MIB

CONTENT = random.Random(5).randbytes(MIB) + bytes(3 * MIB) + b"the end"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _same(data: bytes) -> bytes:
    return data


UNPACK = {GZIP: gzip.decompress, ZSTD: _unzstd, "": _same}


def written(path: Path, compression: str, piece: int = 10_000, *, digest: bool = True) -> LayerOutput:
    """CONTENT written to a file in pieces."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        output = LayerOutput(FdWriter(fd), compression, digest=digest)
        for start in range(0, len(CONTENT), piece):
            output.write(CONTENT[start : start + piece])
        output.close()
    finally:
        os.close(fd)
    return output


@pytest.mark.parametrize(("compression", "unpack"), UNPACK.items())
def test_what_is_written(tmp_path: Path, compression: str, unpack: Callable[[bytes], bytes]) -> None:
    output = written(tmp_path / "layer", compression)
    content = (tmp_path / "layer").read_bytes()
    assert unpack(content) == CONTENT
    assert (output.digest, output.written) == (DIGEST, len(CONTENT))
    assert (len(content) < len(CONTENT) / 2) is bool(compression)
    assert written(tmp_path / "layer", compression, digest=False).digest == ""


@pytest.mark.parametrize("compression", UNPACK)
def test_equal_content_becomes_equal_bytes(tmp_path: Path, compression: str) -> None:
    for name in ("one", "two"):
        written(tmp_path / name, compression)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    if compression == GZIP:
        assert (tmp_path / "one").read_bytes()[3:8] == bytes(5)  # RFC 1952: no name, no time


def test_an_unknown_compression() -> None:
    with pytest.raises(InvalidValue, match="unknown compression 'lz4'"):
        LayerOutput(FdWriter(-1), "lz4")


@pytest.mark.parametrize("compression", UNPACK)
@pytest.mark.parametrize("limit", [7_777, MIB])
def test_what_is_read(tmp_path: Path, compression: str, limit: int) -> None:
    written(tmp_path / "layer", compression)
    stream = DigestStream(RawInput(io.BytesIO((tmp_path / "layer").read_bytes()), "the layer"))
    assert stream.upto(512) == CONTENT[:512]
    assert stream.skip(1000) == 0
    while stream.some(limit):
        pass
    assert (stream.digest, stream.offset) == (DIGEST, len(CONTENT))
