"""What counts as a change between two trees, rule by rule."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmthin.errors import InvalidValue
from dmthin.layers.compare import ChangeKind, TreeChange, TreeComparer
from dmthin.layers.entry import EntryType
from dmthin.layers.same import same_time
from dmthin.layers.xattrs import is_carried, portable
from tests.support.pairs import Pair, pair_in

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return pair_in(tmp_path)


def test_a_copy_has_no_changes(pair: Pair) -> None:
    assert pair.changes() == []


def test_a_tree_and_itself_are_not_even_opened(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.new = pair.old
    asked: list[object] = []
    for call in ("listxattr", "readlink", "pread"):
        monkeypatch.setattr(os, call, lambda *a, **k: asked.append(a))
    assert pair.changes() == []
    assert asked == []


def test_everything_is_added_where_there_is_no_parent(pair: Pair) -> None:
    new = os.open(pair.new, os.O_PATH)
    found = [(change.kind, change.path) for change in TreeComparer(new, None, "layer")]
    os.close(new)
    paths = [b"a", b"d", b"d/e", b"d/e/f", b"d/e/g", b"d/z", b"k", b"k/l", b"p", b"s", b"z"]
    assert found == [(ADDED, path) for path in paths]


def test_directories_on_the_way_come_before_what_changed(pair: Pair) -> None:
    (pair.new / "d/e/g").write_text("something else")
    (pair.new / "d/new").touch()
    (pair.new / "k/l").unlink()
    assert pair.changes() == [
        (MODIFIED, "d"),
        (MODIFIED, "d/e"),
        (MODIFIED, "d/e/g"),
        (ADDED, "d/new"),
        (MODIFIED, "k"),
        (DELETED, "k/l"),
    ]
    by_path = {change.path: change for change in pair.compared()}
    held = by_path[b"d/e"].entry
    assert held is not None
    assert (held.type, held.mtime_ns) == (EntryType.DIRECTORY, os.stat(pair.new / "d/e").st_mtime_ns)
    assert by_path[b"k/l"].entry is None


def test_a_deleted_directory_is_one_change(pair: Pair) -> None:
    shutil.rmtree(pair.new / "d")
    assert pair.changes() == [(DELETED, "d")]


def test_a_directory_that_became_a_file_and_the_other_way(pair: Pair) -> None:
    shutil.rmtree(pair.new / "d")
    (pair.new / "d").write_text("file")
    (pair.new / "a").unlink()
    (pair.new / "a/b").mkdir(parents=True)
    assert pair.changes() == [(MODIFIED, "a"), (ADDED, "a/b"), (MODIFIED, "d")]


def test_a_directory_that_was_made_anew_is_compared(pair: Pair) -> None:
    shutil.rmtree(pair.new / "d")
    shutil.copytree(pair.old / "d", pair.new / "d")
    (pair.new / "d/e/f").unlink()
    assert pair.changes() == [(MODIFIED, "d"), (MODIFIED, "d/e"), (DELETED, "d/e/f")]


def touch(path: Path, more: int) -> None:
    when = path.lstat().st_mtime_ns + more
    os.utime(path, ns=(0, when), follow_symlinks=False)


def rewrite(path: Path) -> None:
    """Other content of the same length at the same time."""
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(before, before))


def retarget(path: Path) -> None:
    before = path.lstat().st_mtime_ns
    path.unlink()
    path.symlink_to("tegrat")
    os.utime(path, ns=(before, before), follow_symlinks=False)


@pytest.mark.parametrize(
    ("path", "act"),
    [
        ("a", lambda path: path.chmod(0o600)),
        ("d", lambda path: path.chmod(0o700)),
        ("d", lambda path: os.setxattr(path, "user.x", b"1")),
        ("a", lambda path: os.setxattr(path, "user.x", b"1")),
        ("a", lambda path: touch(path, 10**9)),
        ("a", lambda path: touch(path, 1)),
        ("s", lambda path: touch(path, 10**9)),
        ("p", lambda path: touch(path, 10**9)),
        ("a", lambda path: path.write_text("longer than it was before")),
        ("a", rewrite),
        ("s", retarget),
    ],
)
def test_what_changes_a_name(pair: Pair, path: str, act: Callable[[Path], None]) -> None:
    act(pair.new / path)
    assert pair.changes() == [(MODIFIED, path)]


@pytest.mark.parametrize(
    ("path", "act"),
    [
        ("a", lambda path: os.chmod(path, os.stat(path).st_mode)),  # a change time and nothing else
        ("a", lambda path: touch(path, -7)),  # nanoseconds that were lost in a tar
        ("d", lambda path: touch(path, 10**12)),
        ("a", lambda path: os.link(path, path.parent.parent / "elsewhere")),
        ("a", lambda path: path.read_bytes()),
    ],
)
def test_what_does_not(pair: Pair, path: str, act: Callable[[Path], None]) -> None:
    act(pair.new / path)
    assert pair.changes() == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (5 * 10**9, 5 * 10**9 + 3, True),
        (5 * 10**9 + 3, 5 * 10**9, True),
        (5 * 10**9 + 3, 5 * 10**9 + 4, False),
        (5 * 10**9, 6 * 10**9, False),
        (-1, -(10**9), True),
        (-1, 0, False),
    ],
)
def test_docker_s_rule_for_times(one: int, other: int, same: bool) -> None:
    assert same_time(one, other) is same


def test_large_and_sparse_files_are_compared_by_content(pair: Pair) -> None:
    for side in (pair.old, pair.new):
        with open(side / "big", "wb") as file:
            file.truncate(1 << 40)  # read byte by byte, this would take minutes
            file.seek(1 << 39)
            file.write(b"data")
        os.utime(side / "big", ns=(0, 0))
    assert pair.changes() == []
    with open(pair.new / "big", "r+b") as file:
        file.seek(1 << 38)
        file.write(b"more")
    os.utime(pair.new / "big", ns=(0, 0))
    assert pair.changes() == [(MODIFIED, "big")]


def test_hard_links_among_what_is_listed(pair: Pair) -> None:
    os.link(pair.new / "a", pair.new / "b")  # of a file that is not listed itself
    os.link(pair.new / "a", pair.new / "c")
    (pair.new / "z").write_text("changed")
    os.link(pair.new / "z", pair.new / "y")
    found = pair.compared()
    assert [(change.path, change.entry and change.entry.type, change.size) for change in found] == [
        (b"b", EntryType.FILE, 12),
        (b"c", EntryType.HARDLINK, 0),
        (b"y", EntryType.FILE, 7),
        (b"z", EntryType.HARDLINK, 0),
    ]
    assert [change.entry and change.entry.link for change in found] == [b"", b"b", b"", b"y"]
    assert sum(change.size for change in pair.compared(read=False)) == 19


def test_names_sort_as_bytes_within_their_directory(pair: Pair) -> None:
    for name in (b"d-", b"d/x", b"\xff", "é".encode(), b"\xed\xb2\x80", b"D"):
        Path(os.fsdecode(os.fsencode(pair.new) + b"/" + name)).touch()
    paths = [change.path for change in pair.compared()]
    assert paths == [b"D", b"d", b"d/x", b"d-", "é".encode(), b"\xed\xb2\x80", b"\xff"]


def test_sockets_are_as_if_they_were_not_there(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair.new)
    os.unlink("a")
    for name in ("a", "socket"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    assert pair.changes() == [(DELETED, "a")]


def test_names_that_no_layer_can_express_are_told_of(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    (pair.new / ".wh.x").touch()
    (pair.new / "d/.wh..wh..opq").mkdir()
    (pair.new / "d/.wh..wh..opq/f").touch()
    assert pair.changes() == []
    assert "skipped d/.wh..wh..opq: a layer cannot contain names with .wh." in caplog.text


def test_a_file_that_shrinks_is_filled_up(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    (pair.new / "a").write_bytes(b"x" * 300_000)
    content = []

    def act(change: TreeChange) -> None:
        content.append(change.data.read(1000))
        os.truncate(pair.new / "a", 2000)
        while piece := change.data.read(100_000):
            content.append(piece)

    assert [change.path for change in pair.compared(act)] == [b"a"]
    assert b"".join(content) == b"x" * 2000 + bytes(298_000)
    assert "a shrank while it was read" in caplog.text


def test_what_vanishes_and_comes_while_it_is_compared(pair: Pair) -> None:
    for path in ("b", "d/e/new", "y"):
        (pair.new / path).touch()

    def act(change: TreeChange) -> None:
        if change.path == b"b":
            shutil.rmtree(pair.new / "d/e")
            (pair.new / "y").unlink()
            (pair.new / "z").unlink()

    assert [(change.kind, change.path) for change in pair.compared(act)] == [
        (ADDED, b"b"),
        (MODIFIED, b"d"),
        (DELETED, b"d/e"),
        (DELETED, b"z"),
    ]


def test_a_file_that_is_replaced_in_this_moment_is_read_as_it_is_then(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As programs replace their files: a new one is renamed over the old."""
    (pair.new / "a").write_text("changed")
    real, left = os.open, [2]

    def busy(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == b"a" and left[0]:
            left[0] -= 1
            (pair.new / "tmp").write_text(f"replaced {left[0]}")
            (pair.new / "tmp").rename(pair.new / "a")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", busy)
    content = []
    found = pair.compared(lambda change: content.append(change.data.read(100)))
    assert ([change.path for change in found], content) == ([b"a"], [b"replaced 0"])


def test_a_directory_that_is_moved_away_is_an_error(pair: Pair) -> None:
    (pair.new.parent / "secret").mkdir()
    (pair.new.parent / "secret/file").touch()
    (pair.new / "d/e/first").touch()

    def act(change: TreeChange) -> None:
        assert b"secret" not in change.path
        assert change.path != b"file"
        if change.path == b"d/e/first":
            (pair.new / "d/e").rename(pair.new.parent / "secret/e")

    with pytest.raises(InvalidValue, match="moved meanwhile"):
        pair.compared(act)


def test_links_are_never_followed(pair: Pair) -> None:
    (pair.new.parent / "secret").mkdir()
    (pair.new.parent / "secret/file").touch()
    shutil.rmtree(pair.new / "d")
    (pair.new / "d").symlink_to(pair.new.parent / "secret")
    assert pair.changes() == [(MODIFIED, "d")]


def test_no_descriptor_stays_open(pair: Pair) -> None:
    (pair.new / "d/e/new").touch()
    before = os.listdir("/proc/self/fd")
    pair.changes()
    new, old = os.open(pair.new, os.O_PATH), os.open(pair.old, os.O_PATH)
    walk = iter(TreeComparer(new, old, "layer"))
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    os.close(new)
    os.close(old)
    assert os.listdir("/proc/self/fd") == before


def test_a_tree_deeper_than_any_path(pair: Pair) -> None:
    fd = os.open(pair.new, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("z" if _ else "deep", dir_fd=fd)
        inner = os.open("z" if _ else "deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(InvalidValue, match="longer than 4095 bytes"):
        pair.changes()
    subprocess.run(["rm", "-rf", pair.new / "deep"], check=True)  # pytest cannot


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        (b"user.x", True),
        (b"security.capability", True),
        (b"system.posix_acl_access", True),
        (b"system.posix_acl_default", True),
        (b"trusted.x", True),
        (b"trusted.overlay.opaque", False),
        (b"security.selinux", False),
        (b"security.ima", False),
        (b"system.nfs4_acl", False),
    ],
)
def test_which_attributes_a_layer_carries(name: bytes, carried: bool) -> None:
    assert is_carried(name) is carried


def test_file_capabilities_lose_their_namespace() -> None:
    v2 = bytes.fromhex("0100000200040000000000000000000000000000")
    v3 = bytes.fromhex("010000030004000000000000000000000000000001000000")
    assert portable(b"security.capability", v3) == v2
    assert portable(b"security.capability", v2) == v2
    assert portable(b"user.x", v3) == v3
