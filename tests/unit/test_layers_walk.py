"""Reading a directory that changes meanwhile, and what is left out of it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmthin.errors import InvalidValue, NotPermitted
from dmthin.layers.entry import Entry, EntryType, Reader
from dmthin.layers.source import open_source
from dmthin.layers.tree_removal import remove_tree


@contextmanager
def walking(tree: Path) -> Iterator[Iterator[tuple[Entry, Reader]]]:
    with open_source(tree) as source:
        yield iter(source)


def paths(tree: Path) -> list[bytes]:
    with walking(tree) as found:
        return [entry.path for entry, _ in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "b" / "inner").mkdir(parents=True)
    (top / "a").write_bytes(b"first")
    (top / "b" / "file").write_bytes(b"x" * 10_000)
    (top / "b" / "inner" / "deep").write_bytes(b"deep")
    (top / "c").symlink_to("a")
    (top / "d").write_bytes(b"last")
    return top


ALL = [b".", b"a", b"b", b"b/file", b"b/inner", b"b/inner/deep", b"c", b"d"]


def test_order_and_position(tree: Path) -> None:
    assert paths(tree) == ALL
    with open_source(str(tree)) as source:
        for _, data in source:
            while data.read(7):
                pass
        assert (source.position, source.total, source.name) == (10_013, None, str(tree))


def test_names_of_one_file(tree: Path) -> None:
    os.link(tree / "d", tree / "b" / "one")
    os.link(tree / "d", tree / "b" / "two")
    os.link(tree / "c", tree / "e", follow_symlinks=False)
    os.link(tree / "a", tree.parent / "elsewhere")
    with walking(tree) as found:
        links = {entry.path: entry.link for entry, _ in found if entry.type is EntryType.HARDLINK}
    assert links == {b"b/two": b"b/one", b"d": b"b/one", b"e": b"c"}


def test_sockets_are_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert paths(tree) == ALL


def test_what_vanishes_is_left_out(tree: Path) -> None:
    with walking(tree) as found:
        assert next(found)[0].path == b"."
        (tree / "a").unlink()
        (tree / "d").unlink()
        assert [entry.path for entry, _ in found] == [b"b", b"b/file", b"b/inner", b"b/inner/deep", b"c"]


def test_a_file_that_shrinks_is_an_error(tree: Path) -> None:
    with walking(tree) as found:
        for entry, data in found:
            if entry.path == b"b/file":
                assert len(data.read(100)) == 100
                os.truncate(tree / "b" / "file", 500)
                with pytest.raises(InvalidValue, match=r"b/file shrank while it was read"):
                    while data.read(1000):
                        pass
                break


def test_a_file_that_grows_keeps_its_size(tree: Path) -> None:
    with walking(tree) as found:
        for entry, data in found:
            if entry.path == b"d":
                with open(tree / "d", "ab") as file:
                    file.write(b" and more")
                assert (entry.size, data.read(100), data.read(100)) == (4, b"last", b"")


def test_a_directory_that_is_moved_is_an_error(tree: Path) -> None:
    (tree.parent / "outside").mkdir()
    (tree.parent / "outside" / "secret").write_bytes(b"")
    with walking(tree) as found, pytest.raises(InvalidValue, match="moved meanwhile"):
        for entry, _ in found:
            assert b"secret" not in entry.path
            if entry.path == b"b/inner":
                (tree / "b" / "inner").rename(tree.parent / "outside" / "inner")


def after_lstat(monkeypatch: pytest.MonkeyPatch, name: bytes, act: Callable[[], None]) -> None:
    """Let `act` happen just after the walker has looked at `name` and before it opens it."""
    real = os.lstat
    todo = [act]

    def lstat(path: Any, **options: Any) -> os.stat_result:
        info = real(path, **options)
        if path == name and todo:
            todo.pop()()
        return info

    monkeypatch.setattr(os, "lstat", lstat)


def test_a_directory_that_becomes_a_link(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap() -> None:
        (tree / "b").rename(tree.parent / "b")
        (tree / "b").symlink_to("/")

    after_lstat(monkeypatch, b"b", swap)
    with walking(tree) as found, pytest.raises(InvalidValue, match="cannot read b: "):
        list(found)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.touch, Path.mkdir])
def test_a_file_that_becomes_something_else(
    tree: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    def swap() -> None:
        (tree / "a").rename(tree.parent / "a")
        make(tree / "a")

    after_lstat(monkeypatch, b"a", swap)
    with walking(tree) as found, pytest.raises(InvalidValue, match="cannot read a: "):
        list(found)


def test_a_file_that_vanishes_before_it_is_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_lstat(monkeypatch, b"a", (tree / "a").unlink)
    assert b"a" not in paths(tree)


def test_a_tree_deeper_than_any_path(tree: Path) -> None:
    top = os.open(tree, os.O_RDONLY)
    fd = os.dup(top)
    for _ in range(3000):
        os.mkdir("z", dir_fd=fd)
        inner = os.open("z", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with walking(tree) as found, pytest.raises(InvalidValue, match="longer than 4095 bytes"):
        list(found)
    remove_tree(top, b"z")  # pytest cannot
    os.close(top)


def test_what_cannot_be_read(tree: Path) -> None:
    (tree / "d").chmod(0)
    with walking(tree) as found:
        if os.geteuid() == 0:
            assert len(list(found)) == len(ALL)
        else:
            with pytest.raises(NotPermitted, match="cannot read d: "):
                list(found)


def test_no_descriptor_stays_open(tree: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert paths(tree) == ALL
    with walking(tree) as found:
        next(found)
        next(found)
        del found
    with walking(tree) as found:
        for entry, _ in found:
            if entry.path == b"b/inner/deep":
                break
        found.close()  # type: ignore[attr-defined]
    assert set(os.listdir("/proc/self/fd")) == before
