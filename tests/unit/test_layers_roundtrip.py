"""A random tree, packed by GNU tar, by tarfile or read by the walker, comes out of the unpacker as it was."""

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dmthin.layers.source import open_source
from dmthin.layers.unpack import Progress, unpack
from tests.support.examples import examples
from tests.support.trees import build, snapshot


def _is_name(name: bytes) -> bool:
    return name not in (b".", b"..") and b"/" not in name and b"\0" not in name


names = st.one_of(
    st.sampled_from([b"a", b"b", b" ", b"-rf", b"new\nline", b"back\\slash", b"%3D=%25", b"\xff\xfe", b"n" * 255]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(str.encode).filter(_is_name),
    st.binary(min_size=1, max_size=120).filter(_is_name),
)
times = st.integers(-(10**9), 4 * 10**9).flatmap(
    lambda seconds: st.integers(0, 999_999_999).map(lambda rest: seconds * 10**9 + rest)
)
runs = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 9000)), max_size=5)
leaves = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=3000), st.integers(0, 0o7777), times),
    st.tuples(st.just("sparse"), runs, st.integers(0, 0o777), times),
    st.tuples(st.just("symlink"), st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t), times),
    st.tuples(st.just("hardlink"), st.integers(0, 100)),
    st.tuples(st.just("fifo"), st.integers(0, 0o777), times),
)


def _directory(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    held = st.dictionaries(names, children, min_size=1, max_size=5)
    return st.tuples(st.just("directory"), held, st.integers(0, 0o7777), times)


directories = _directory(st.one_of(leaves, _directory(st.one_of(leaves, _directory(leaves)))))


def _gnu(tree: bytes, archive: Path, *options: str) -> None:
    subprocess.run(["tar", *options, "-C", os.fsdecode(tree), "-cf", archive, "."], check=True, capture_output=True)


def _with_exact_time(top: bytes) -> Any:
    def exact(member: tarfile.TarInfo) -> tarfile.TarInfo:
        when = os.lstat(os.path.join(top, os.fsencode(member.name))).st_mtime_ns
        sign, when = ("-", -when) if when < 0 else ("", when)
        member.pax_headers = {"mtime": f"{sign}{when // 10**9}.{when % 10**9:09}"}
        return member

    return exact


def _python(tree: bytes, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as writer:
        writer.add(os.fsdecode(tree), ".", filter=_with_exact_time(tree))


@examples(usual=25, deep=1000)
@given(directories)
def test_a_tree_survives_every_way_in(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = os.fsencode(scratch) + b"/tree"
        os.mkdir(top)
        build(top, tree)
        archive = Path(scratch, "tar")
        ways: dict[str, Callable[[], None]] = {
            "gnu": lambda: _gnu(top, archive, "--format=gnu"),
            "gnu sparse": lambda: _gnu(top, archive, "--format=gnu", "--sparse"),
            "pax": lambda: _gnu(top, archive, "--format=pax"),
            "pax 0.0": lambda: _gnu(top, archive, "--format=pax", "--sparse", "--sparse-version=0.0"),
            "pax 0.1": lambda: _gnu(top, archive, "--format=pax", "--sparse", "--sparse-version=0.1"),
            "pax 1.0": lambda: _gnu(top, archive, "--format=pax", "--sparse", "--sparse-version=1.0"),
            "tarfile": lambda: _python(top, archive),
            "walker": lambda: None,
        }
        expected = {exact: snapshot(top, whole_seconds=exact) for exact in (False, True)}
        for way, pack in ways.items():
            pack()
            root = f"{scratch}/{way}"
            os.mkdir(root)
            done = unpack(os.fsdecode(top) if way == "walker" else archive, root, keep_owners=False)
            whole = way.startswith("gnu")
            assert snapshot(os.fsencode(root), whole_seconds=whole) == expected[whole], way
            assert done.entries == len(expected[whole]), way


@examples(usual=25, deep=1000)
@given(directories)
def test_our_reading_agrees_with_tarfile(tree: Any) -> None:
    """The standard library's reader is the oracle for what a header means."""
    with tempfile.TemporaryDirectory() as scratch:
        top = os.fsencode(scratch) + b"/tree"
        os.mkdir(top)
        build(top, tree)
        for options in (["--format=gnu"], ["--format=pax"], ["--format=gnu", "--sparse"]):
            archive = Path(scratch, "tar")
            _gnu(top, archive, *options)
            with tarfile.open(archive) as reader, open_source(archive) as source:
                theirs = [
                    (
                        os.fsencode(m.name).rstrip(b"/"),
                        m.mode,
                        m.uid,
                        m.gid,
                        m.size if m.isreg() else 0,
                        os.fsencode(m.linkname),
                        hash(reader.extractfile(m).read()) if m.isreg() else 0,  # type: ignore[union-attr]
                    )
                    for m in reader
                ]
                ours = []
                for entry, data in source:
                    content = io.BytesIO(bytes(entry.size))
                    runs_of_data = ((0, entry.size),) if entry.segments is None else entry.segments
                    assert entry.stored == sum(length for _, length in runs_of_data)
                    for offset, length in runs_of_data:
                        content.seek(offset)
                        while length:
                            piece = data.read(length)
                            length -= content.write(piece)
                    ours.append(
                        (
                            entry.path.rstrip(b"/"),
                            entry.mode,
                            entry.uid,
                            entry.gid,
                            entry.size,
                            entry.link,
                            hash(content.getvalue()) if entry.type == "file" else 0,
                        )
                    )
            assert ours == theirs


def test_a_symbolic_link_with_two_names(tmp_path: Path) -> None:
    """Which the standard library cannot pack."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "one").symlink_to("/nowhere")
    os.link(tree / "one", tree / "two", follow_symlinks=False)
    _gnu(os.fsencode(tree), tmp_path / "tar")
    for source in (tree, tmp_path / "tar"):
        root = tmp_path / f"root of {source.name}"
        root.mkdir()
        unpack(source, root, keep_owners=False)
        assert os.lstat(root / "one").st_ino == os.lstat(root / "two").st_ino
        assert (root / "two").readlink() == Path("/nowhere")


def test_holes_stay_holes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "disk", "wb") as file:
        file.seek(64 << 20)
        file.write(b"data")
        file.truncate(256 << 20)
    blocks = (tree / "disk").stat().st_blocks
    sources: list[Path] = [tree]
    for version in ("", "0.0", "0.1", "1.0"):
        kind = ["--format=pax", f"--sparse-version={version}"] if version else ["--format=gnu"]
        _gnu(os.fsencode(tree), tmp_path / f"tar{version}", "--sparse", *kind)
        sources.append(tmp_path / f"tar{version}")
    for number, source in enumerate(sources):
        root = tmp_path / f"root{number}"
        root.mkdir()
        unpack(source, root, keep_owners=False)
        disk = root / "disk"
        assert disk.stat().st_size == 256 << 20
        assert disk.stat().st_blocks <= blocks
        with open(disk, "rb") as file:
            assert file.read(16) == bytes(16)
            file.seek(64 << 20)
            assert file.read(8) == b"data\0\0\0\0"


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(600):
        (tree / f"{number}").write_bytes(b"x")
    (tree / "big").write_bytes(bytes(5 << 20))
    archive = tmp_path / "tar"
    _gnu(os.fsencode(tree), archive)
    root = tmp_path / "root"
    root.mkdir()
    heard: list[Progress] = []
    done = unpack(archive, root, progress=heard.append, keep_owners=False)
    assert (done.entries, done.bytes) == (602, 600 + (5 << 20))
    assert (heard[-1].entries, heard[-1].bytes) == (602, done.bytes)
    assert heard[-1].read == heard[-1].total == archive.stat().st_size
    assert len(heard) == 4  # two for many files, one for the large one, the end
    assert [one.bytes for one in heard] == sorted(one.bytes for one in heard)
