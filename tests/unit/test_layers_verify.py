"""A layer compared with its tar, and with the record of it; records are written here, as tar-split writes them."""

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tarfile import TarInfo

import pytest

from dmthin.errors import InvalidValue
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.tar import TarReader
from dmthin.layers.tar_split import verify_record
from dmthin.layers.verify import Findings, parse_findings, verify_tar


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def segment(data: bytes) -> bytes:
    return line(type=2, payload=base64.b64encode(data).decode())


def findings(root: Path, record: bytes) -> Findings:
    fd = os.open(root, os.O_RDONLY)
    try:
        return verify_record(fd, ByteStream(RawInput(io.BytesIO(record), "layer")), "layer")
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
    found = Findings("sha256:1", ["a"], ["b"], ["c"])
    assert parse_findings(json.dumps(asdict(found)).encode()) == found
    for text in (b"", b"{}", b'{"digest": "", "missing": 1, "changed": [], "stale": []}', b"[]"):
        with pytest.raises(InvalidValue, match="invalid findings"):
            parse_findings(text)


def tar_findings(root: Path, archive: bytes) -> Findings:
    fd = os.open(root, os.O_RDONLY)
    try:
        return verify_tar(fd, TarReader(ByteStream(RawInput(io.BytesIO(archive), "layer")), "layer", layer=True))
    finally:
        os.close(fd)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[TarInfo, bytes]:
    info = TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def tar(*members: tuple[TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


SOUND = (
    member("d", kind=tarfile.DIRTYPE),
    member("d/f", b"content"),
    member("d/g", kind=tarfile.LNKTYPE, link="d/f"),
    member("l", kind=tarfile.SYMTYPE, link="d/f"),
    member("p", kind=tarfile.FIFOTYPE),
    member("e"),
)


@pytest.fixture
def unpacked(root: Path) -> Path:
    """The root, with what SOUND has."""
    (root / "d/g").hardlink_to(root / "d/f")
    (root / "l").symlink_to("d/f")
    os.mkfifo(root / "p")
    (root / "e").touch()
    return root


def test_a_tree_that_is_its_tar(unpacked: Path) -> None:
    assert tar_findings(unpacked, tar(*SOUND)) == Findings()


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda root: (root / "d/g").unlink(), Findings(missing=["d/g"])),
        (lambda root: (root / "e").write_bytes(b"1"), Findings(missing=["e"])),
        (lambda root: (root / "d/f").write_bytes(b"CONTENT"), Findings(changed=["d/f"])),
        (lambda root: replaced(root / "l", lambda path: path.symlink_to("d")), Findings(changed=["l"])),
        (lambda root: replaced(root / "p", Path.touch), Findings(changed=["p"])),
        (lambda root: replaced(root / "e", Path.mkdir), Findings(changed=["e"])),
    ],
    ids=["missing", "longer", "changed", "link", "type", "directory"],
)
def test_a_tree_that_differs_from_its_tar(unpacked: Path, damage: Callable[[Path], object], found: Findings) -> None:
    damage(unpacked)
    assert tar_findings(unpacked, tar(*SOUND)) == found


def test_the_last_entry_of_a_path_decides(unpacked: Path) -> None:
    former = [
        member("d/f", b"former, longer"),
        member("p", b"x"),
        member("e", kind=tarfile.DIRTYPE),
        member("e/x", b"x"),
    ]
    assert tar_findings(unpacked, tar(*former, *SOUND)) == Findings()
    found = tar_findings(unpacked, tar(*SOUND, *former[:2]))
    assert found == Findings(missing=["d/f"], changed=["p"])


def test_a_directory_that_comes_again_hides_nothing(unpacked: Path) -> None:
    (unpacked / "d/f").write_bytes(b"CONTENT")
    assert tar_findings(unpacked, tar(*SOUND, SOUND[0])) == Findings(changed=["d/f"])


def test_whiteouts_of_a_tar(unpacked: Path) -> None:
    (unpacked / "d/old").touch()
    (unpacked / "gone").touch()
    assert tar_findings(
        unpacked, tar(*SOUND, member("d/.wh..wh..opq"), member(".wh.gone"), member(".wh.e"))
    ) == Findings(stale=["d/old", "gone"])


def test_a_sparse_file(unpacked: Path) -> None:
    with (unpacked / "s").open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "-S", "-C", unpacked, "-cf", unpacked.parent / "s.tar", "s"], check=True)
    archive = (unpacked.parent / "s.tar").read_bytes()
    assert tar_findings(unpacked, archive) == Findings()
    with (unpacked / "s").open("r+b") as file:
        file.truncate(1 << 19)
    assert tar_findings(unpacked, archive) == Findings(missing=["s"])


def test_a_tar_that_is_truncated(unpacked: Path) -> None:
    with pytest.raises(InvalidValue, match="ends within a header"):
        tar_findings(unpacked, tar(*SOUND)[:700])


def test_a_deletion_of_what_the_tar_has_itself(unpacked: Path) -> None:
    (unpacked / "e").unlink()
    assert tar_findings(unpacked, tar(*SOUND, member(".wh.e"))) == Findings()


def test_more_superseded_entries_than_are_named(unpacked: Path) -> None:
    names = [f"n{number:03}" for number in range(150)]
    for name in names:
        (unpacked / name).write_bytes(b"new")
    (unpacked / "e").write_bytes(b"damaged")
    former, latter = ([member(name, data) for name in names] for data in (b"old", b"new"))
    assert tar_findings(unpacked, tar(*former, *SOUND, *latter)) == Findings(missing=["e"])
    assert tar_findings(unpacked, tar(*latter, *former)).changed == names[:100]


def test_an_opaque_directory_deeper_than_python_recurses(root: Path) -> None:
    path = "o/" * 1500
    subprocess.run(["mkdir", "-p", root / path / "stale"], check=True)
    findings = tar_findings(root, tar(member("o/.wh..wh..opq"), member(path, kind=tarfile.DIRTYPE)))
    assert [len(name) for name in findings.stale] == [200 + len("… (3005 bytes)")]
    subprocess.run(["rm", "-r", root / "o"], check=True)
