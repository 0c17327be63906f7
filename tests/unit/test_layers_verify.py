"""A layer compared with the record of its tar; the records of tars are written here, as tar-split writes them."""

import base64
import gzip
import hashlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.verify import Findings, LayerVerifier, parse_findings


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def segment(data: bytes) -> bytes:
    return line(type=2, payload=base64.b64encode(data).decode())


def findings(root: Path, record: bytes) -> Findings:
    fd = os.open(root, os.O_RDONLY)
    try:
        return LayerVerifier(fd, ByteStream(RawInput(io.BytesIO(record), "layer")), "layer").verify()
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "d").mkdir(parents=True)
    (path / "d/f").write_bytes(b"content")
    return path


def test_the_digest_is_that_of_the_tar(root: Path) -> None:
    record = segment(b"head") + line(type=1, name="d/f", size=7, payload="AA==") + segment(b"tail")
    for data in (record, gzip.compress(record), record.rstrip()):
        found = findings(root, data)
        assert found == Findings(f"sha256:{hashlib.sha256(b'headcontenttail').hexdigest()}")


def test_a_name_that_is_not_utf8(root: Path) -> None:
    (root / os.fsdecode(b"\xff")).write_bytes(b"x")
    found = findings(root, line(type=1, name_raw=base64.b64encode(b"\xff").decode(), size=1))
    assert found.digest == f"sha256:{hashlib.sha256(b'x').hexdigest()}"


def test_names_are_resolved_below_the_root(root: Path) -> None:
    (root / "out").symlink_to("/..")
    found = findings(root, line(type=1, name="out/d/f", size=7) + line(type=1, name="../../d/f", size=7))
    assert found.digest == f"sha256:{hashlib.sha256(b'content' * 2).hexdigest()}"


@pytest.mark.parametrize("name", ["d/none", "d/f/below", "none/f", "d"])
def test_what_is_missing(root: Path, name: str) -> None:
    (root / "d/link").symlink_to("f")
    assert findings(root, line(type=1, name=name, size=7)) == Findings("", [name])


def test_whiteouts_and_what_the_layer_made_itself(root: Path) -> None:
    for name in ("old", "new", "deep/er/new", "deep/er/old"):
        (root / "o" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "o" / name).write_bytes(b"")
    names = ["o/.wh..wh..opq", "o/new", "o/deep/er/new", ".wh.d", ".wh.none", "none/.wh.x", "d/f/.wh.x"]
    found = findings(root, b"".join(line(type=1, name=name) for name in names))
    assert sorted(found.stale) == ["d", "o/deep/er/old", "o/old"]
    assert findings(root, line(type=1, name="./d/f") + line(type=1, name=".wh.d")).stale == []


@pytest.mark.parametrize(
    "record",
    [
        b"no json\n",
        b"[]\n",
        line(type=3),
        line(type=2, payload="%%%"),
        line(type=2, payload=7),
        line(type=1, name=7),
        line(type=1, name="d/f", size="7"),
        b" " * (5 << 20),
    ],
)
def test_records_that_are_none(root: Path, record: bytes) -> None:
    with pytest.raises(InvalidValue, match="layer: its record of the tar is invalid"):
        findings(root, record)


def test_findings_as_a_worker_writes_them() -> None:
    found = Findings("sha256:1", ["a"], ["b"])
    assert parse_findings(json.dumps(asdict(found)).encode()) == found
    for text in (b"", b"{}", b'{"digest": "", "missing": 1, "stale": []}', b"[]"):
        with pytest.raises(InvalidValue, match="invalid findings"):
            parse_findings(text)
