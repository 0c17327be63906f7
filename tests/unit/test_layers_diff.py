"""The law of layers: what differs between a tree and its parent, applied to a copy of the parent, makes the tree."""

import io
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dmthin.layers.compare import TreeComparer
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.tar import TarReader
from dmthin.layers.tarwriter import TarWriter
from dmthin.layers.unpacker import Unpacker
from tests.support.examples import examples
from tests.support.trees import build, seen, snapshot

ROOT = os.geteuid() == 0
NAMES = [b"a", b"b", b"c.d", b"\xff", b"n" * 200]
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
times = st.integers(0, 2**33).map(lambda number: number * 1_000_000_007)

leaves = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=40), st.sampled_from([0o644, 0o755, 0o4711]), times),
    st.tuples(st.just("sparse"), st.lists(st.tuples(st.integers(0, 64), st.integers(1, 9000)), max_size=2),
              st.just(0o600), times),
    st.tuples(st.just("symlink"), st.sampled_from([b"a", b"/b", b"../../c", b"x" * 150]), times),
    st.tuples(st.just("hardlink"), st.integers(0, 100)),
    st.tuples(st.just("fifo"), st.just(0o640), times),
)  # fmt: skip


def _directory(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    held = st.dictionaries(names, children, max_size=5)
    return st.tuples(st.just("directory"), held, st.sampled_from([0o755, 0o1777, 0o700]), times)


trees = _directory(st.one_of(leaves, _directory(st.one_of(leaves, _directory(leaves)))))
changes = st.lists(
    st.one_of(
        st.tuples(st.just("remove"), paths),
        st.tuples(st.just("write"), paths, st.binary(max_size=40), times),
        st.tuples(st.just("append"), paths, st.binary(min_size=1, max_size=10)),
        st.tuples(st.just("chmod"), paths, st.sampled_from([0o600, 0o755, 0o2711])),
        st.tuples(st.just("touch"), paths, times),
        st.tuples(st.just("move"), paths, paths),
        st.tuples(st.just("mkdir"), paths),
        st.tuples(st.just("symlink"), paths, paths),
        st.tuples(st.just("link"), paths, paths),
        st.tuples(st.just("xattr"), paths, st.binary(max_size=20)),
        st.tuples(st.just("chown"), paths, st.integers(0, 3_000_000)),
        st.tuples(st.just("mknod"), paths, st.integers(0, 300)),
    ),
    max_size=12,
)


def change(top: bytes, action: tuple[Any, ...]) -> None:
    """Do one thing in a tree, if it can be done there."""
    verb, path, *rest = action
    path = top + b"/" + path
    try:
        info = os.lstat(path)
    except OSError:
        info = None
    is_file = info is not None and stat.S_ISREG(info.st_mode)
    is_link = info is not None and stat.S_ISLNK(info.st_mode)
    try:
        match verb:
            case "remove" if info is not None:
                shutil.rmtree(path) if stat.S_ISDIR(info.st_mode) else os.unlink(path)
            case "write" if info is None or is_file:
                with open(path, "wb") as file:
                    file.write(rest[0])
                os.utime(path, ns=(rest[1], rest[1]))
            case "append" if is_file:
                with open(path, "ab") as file:
                    file.write(rest[0])
            case "chmod" if info is not None and not is_link:
                os.chmod(path, rest[0])
            case "touch" if info is not None and not stat.S_ISDIR(info.st_mode):
                os.utime(path, ns=(rest[0], rest[0]), follow_symlinks=False)
            case "move" if info is not None:
                os.rename(path, top + b"/" + rest[0])
            case "mkdir":
                os.mkdir(path)
            case "symlink":
                os.symlink(rest[0], path)
            case "link" if info is None:
                os.link(top + b"/" + rest[0], path, follow_symlinks=False)
            case "xattr" if info is not None and (is_file or stat.S_ISDIR(info.st_mode)):
                os.setxattr(path, b"user.x", rest[0])
            case "chown" if info is not None and ROOT:
                os.chown(path, rest[0], rest[0] // 2, follow_symlinks=False)
            case "mknod" if info is None and ROOT:
                os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(240, rest[0]))
    except OSError:
        pass  # a parent that is none, a directory moved into itself


def diff(new: str, old: str | None) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    fds = [os.open(path, os.O_PATH) for path in (new, old) if path is not None]
    for found in TreeComparer(fds[0], fds[1] if old is not None else None, "layer"):
        if found.entry is None:
            writer.remove(found.path, 10**9)
        else:
            writer.add(found.entry, found.data)
    writer.end()
    for fd in fds:
        os.close(fd)
    return out.getvalue()


def apply(archive: bytes, root: str) -> int:
    with Unpacker(root, layer=True, keep_owners=ROOT) as unpacker:
        for entry, data in TarReader(ByteStream(RawInput(io.BytesIO(archive), "diff")), "diff"):
            unpacker.apply(entry, data)
        return unpacker.bytes


@examples(usual=40, deep=1500)
@given(trees, changes)
def test_a_diff_applied_to_a_copy_of_the_parent_makes_the_layer(tree: Any, actions: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        old, new, copy = (f"{scratch}/{name}" for name in ("old", "new", "copy"))
        os.mkdir(old)
        build(os.fsencode(old), tree)
        for to in (new, copy):
            subprocess.run(["cp", "-a", old, to], check=True)
        for action in actions:
            change(os.fsencode(new), action)
        archive = diff(new, old)
        apply(archive, copy)
        assert seen(copy) == seen(new)
        again = diff(copy, new)
        assert again == bytes(1024), "what was applied differs from what was to be"
        whole = f"{scratch}/whole"
        os.mkdir(whole)
        apply(diff(new, None), whole)
        assert seen(whole) == seen(new)
        if not actions:
            assert archive == bytes(1024)


def test_a_second_name_keeps_its_inode_if_both_are_in_the_diff(tmp_path: Path) -> None:
    for name in ("old", "new", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "new/d").mkdir()
    (tmp_path / "new/a").write_text("x")
    os.link(tmp_path / "new/a", tmp_path / "new/d/b")
    os.symlink("nowhere", tmp_path / "new/s")
    os.link(tmp_path / "new/s", tmp_path / "new/t", follow_symlinks=False)
    apply(diff(str(tmp_path / "new"), str(tmp_path / "old")), str(tmp_path / "copy"))
    assert snapshot(os.fsencode(tmp_path / "copy")) == snapshot(os.fsencode(tmp_path / "new")) | {
        b"": snapshot(os.fsencode(tmp_path / "copy"))[b""]
    }


def test_times_of_directories_that_changed_are_carried(tmp_path: Path) -> None:
    for name in ("old/d", "new/d", "copy/d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "new/d/f").touch()
    os.utime(tmp_path / "new/d", ns=(0, 123_456_789_123))
    apply(diff(str(tmp_path / "new"), str(tmp_path / "old")), str(tmp_path / "copy"))
    assert (tmp_path / "copy/d").stat().st_mtime_ns == 123_456_789_123
