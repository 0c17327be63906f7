"""A layer over the tree of the layer below: what it says is gone is gone, and nothing else is."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.layers.entry import Entry, EntryType
from dmthin.layers.idmap import IdMap, Owners
from dmthin.layers.unpack import Unpacked, unpack
from dmthin.layers.unpacker import Unpacker
from tests.support.tars import member, tar

DIRECTORY, SYMLINK, HARDLINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
OPAQUE = ".wh..wh..opq"
Member = tuple[tarfile.TarInfo, bytes]


class Tree:
    """The tree of the layer below, and what is beside it."""

    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "root"
        self.root.mkdir()
        (scratch / "outside").mkdir()
        (scratch / "outside" / "file").write_bytes(b"untouched")
        self.outside = scratch / "outside"

    def make(self, *paths: str) -> "Tree":
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text("old")
        return self

    def apply(self, *members: Member) -> Unpacked:
        done = unpack(io.BytesIO(tar(*members)), self.root, keep_owners=False, layer=True)
        assert (self.outside / "file").read_bytes() == b"untouched"
        return done

    def files(self) -> list[str]:
        """All that is no directory, and empty directories with a slash."""
        found = []
        for folder, inner, files in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            links = [name for name in inner if (Path(folder) / name).is_symlink()]
            found += [str(here / name) for name in files + links]
            if not inner and not files and folder != str(self.root):
                found.append(f"{here}/")
        return sorted(found)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def folder(name: str, mtime: int = 0) -> Member:
    return member(name, type=DIRECTORY, mode=0o755, mtime=mtime)


def test_a_file_a_link_and_a_directory_are_removed(tree: Tree) -> None:
    tree.make("a", "d/e/f", "d/g", "stays")
    (tree.root / "link").symlink_to(tree.outside)
    done = tree.apply(member(".wh.a"), member(".wh.d"), member(".wh.link"), member(".wh.never"))
    assert tree.files() == ["stays"]
    assert (done.entries, done.bytes) == (4, 0)


def test_what_is_removed_may_be_below_a_link_inside(tree: Tree) -> None:
    tree.make("usr/lib/x", "usr/lib/y")
    (tree.root / "lib").symlink_to("usr/lib")
    tree.apply(member("lib/.wh.x"))
    assert tree.files() == ["lib", "usr/lib/y"]


@pytest.mark.parametrize("parent", ["file", "dangling"])
@pytest.mark.parametrize("name", [".wh.x", OPAQUE])
def test_a_parent_that_is_none_has_nothing_to_lose(tree: Tree, parent: str, name: str) -> None:
    tree.make("file", "x")
    (tree.root / "dangling").symlink_to("nowhere")
    tree.apply(member(f"{parent}/{name}"))
    assert tree.files() == ["dangling", "file", "x"]


@pytest.mark.parametrize("parent", ["missing", "missing/deep"])
@pytest.mark.parametrize("name", [".wh.x", OPAQUE])
def test_the_parent_of_a_whiteout_is_created(tree: Tree, parent: str, name: str) -> None:
    tree.apply(member(f"{parent}/{name}"))
    assert tree.files() == [f"{parent}/"]
    assert (tree.root / "missing").stat().st_mode == 0o40755


@pytest.mark.parametrize("way", ["../../outside", "/outside", "../outside"])
def test_no_whiteout_leads_outside(tree: Tree, way: str) -> None:
    (tree.root / "out").symlink_to(way)
    tree.apply(member("out/.wh.file"), member(f"{way}/.wh.file"), member(f"out/{OPAQUE}"))
    assert os.listdir(tree.outside) == ["file"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_malformed_ones_are_refused(tree: Tree, name: str) -> None:
    tree.make("d/f")
    with pytest.raises(InvalidValue, match="is a whiteout without a name"):
        tree.apply(member(name))
    assert tree.files() == ["d/f"]


def test_the_order_within_a_layer_counts(tree: Tree) -> None:
    tree.make("a")
    tree.apply(member(".wh.a"), member("a", b"new"), member("b", b"new"), member(".wh.b"))
    assert tree.files() == ["a"]
    assert (tree.root / "a").read_bytes() == b"new"


def test_an_opaque_directory_keeps_what_the_layer_put_there_before(tree: Tree) -> None:
    tree.make("d/old", "d/sub/old", "d/sub/deep/old", "d/other/old", "e/old")
    tree.apply(
        folder("d"),
        member("d/new", b"1"),
        member("d/sub/deep/new", b"2"),
        folder("d/kept"),
        member(f"d/{OPAQUE}"),
        member("d/later", b"3"),
    )
    assert tree.files() == ["d/kept/", "d/later", "d/new", "d/sub/deep/new", "e/old"]


def test_an_opaque_directory_keeps_an_old_one_that_the_layer_touched_without_its_content(tree: Tree) -> None:
    tree.make("d/sub/old/older")
    tree.apply(folder("d/sub", mtime=77), member(f"d/{OPAQUE}"))
    assert tree.files() == ["d/sub/"]
    assert (tree.root / "d/sub").stat().st_mtime == 77


def test_an_opaque_mark_first(tree: Tree) -> None:
    tree.make("d/old", "d/same")
    tree.apply(member(f"d/{OPAQUE}"), folder("d", mtime=5), member("d/same", b"new"))
    assert tree.files() == ["d/same"]
    assert (tree.root / "d/same").read_bytes() == b"new"
    assert (tree.root / "d").stat().st_mtime == 5


def test_an_opaque_root(tree: Tree) -> None:
    tree.make("old", "d/old")
    tree.apply(member("d/new"), member(OPAQUE), member("new"))
    assert tree.files() == ["d/new", "new"]


@pytest.mark.parametrize(
    "mark",
    [
        member("d/.wh..wh..opq"),
        member("d/.wh..wh..opq", type=DIRECTORY, mode=0o755),
        member("d/.wh..wh..opq", type=HARDLINK, linkname="d/new"),
        member("d/.wh..wh..opq", b"with content"),
        member("l/.wh..wh..opq"),
    ],
    ids=["a file", "a directory", "a hard link", "with content", "behind a link"],
)
def test_an_opaque_mark_of_any_type_empties_and_is_not_made(tree: Tree, mark: Member) -> None:
    """The name is Docker's WhiteoutOpaqueDir, which the engine tests compare with a layer of dockerd's."""
    tree.make("d/old", "d/.old", "d/sub/.old")
    (tree.root / "l").symlink_to("d")
    tree.apply(member("d/new", b"1"), member("d/sub/.new", b"2"), mark, member("d/.later", b"3"))
    assert tree.files() == ["d/.later", "d/new", "d/sub/.new", "l"]


def test_the_opaque_mark_of_aufs_without_its_second_dot_is_an_ordinary_whiteout(tree: Tree) -> None:
    tree.make("d/.wh.opq", "d/old")
    tree.apply(member("d/.wh..wh.opq"))
    assert tree.files() == ["d/old"]


def test_what_was_unpacked_through_a_link_is_spared_at_its_real_place(tree: Tree) -> None:
    tree.make("usr/lib/old")
    (tree.root / "lib").symlink_to("usr/lib")
    tree.apply(member("lib/new"), member(f"usr/lib/{OPAQUE}"))
    assert tree.files() == ["lib", "usr/lib/new"]


def test_a_new_name_of_an_old_file_is_spared_and_the_old_one_is_not(tree: Tree) -> None:
    tree.make("d/old")
    tree.apply(member("d/new", type=HARDLINK, linkname="d/old"), member(f"d/{OPAQUE}"))
    assert tree.files() == ["d/new"]


def test_the_same_name_elsewhere_is_not_spared(tree: Tree) -> None:
    tree.make("a/f", "b/f")
    tree.apply(member("a/f", b"new"), member(f"b/{OPAQUE}"))
    assert tree.files() == ["a/f", "b/"]


def test_directories_that_lose_something_keep_their_times(tree: Tree) -> None:
    tree.make("d/sub/old", "d/sub/new", "d/f")
    for path in ("d/sub", "d"):
        os.utime(tree.root / path, ns=(1, 123456789))
    tree.apply(member("d/sub/new", b"x"), member(f"d/{OPAQUE}"), member(".wh.nothing"))
    assert tree.files() == ["d/sub/new"]
    for path in ("d/sub", "d"):
        assert (tree.root / path).stat().st_mtime_ns == 123456789


def test_very_deep_trees_are_emptied(tree: Tree) -> None:
    fd = os.open(tree.root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("z", dir_fd=fd)
        inner = os.open("z", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    tree.apply(member("z/z/new"), member(f"z/{OPAQUE}"))
    assert tree.files() == ["z/z/new"]


def test_names_of_aufs_are_skipped_with_what_is_below_them(tree: Tree) -> None:
    done = tree.apply(
        folder(".wh..wh.orph"), member(".wh..wh.orph/f", b"12345"), member(".wh..wh.aufs", b"1"), member("f")
    )
    assert tree.files() == ["f"]
    assert done.bytes == 6


def test_sources_of_hard_links(tree: Tree) -> None:
    tree.make(".wh..wh.plnk/stale")
    tree.apply(
        folder(".wh..wh.plnk", mtime=1),
        member(".wh..wh.plnk/1.2", b"shared", mode=0o640),
        member(".wh..wh.plnk/pipe", type=tarfile.FIFOTYPE),
        member("a", type=HARDLINK, linkname="/.wh..wh.plnk/1.2"),
        member("d/b", type=HARDLINK, linkname=".wh..wh.plnk/1.2"),
        member(OPAQUE),
        member("c", type=HARDLINK, linkname=".wh..wh.plnk/1.2"),
    )
    assert tree.files() == ["a", "c", "d/b"]
    info = (tree.root / "a").stat()
    assert (info.st_nlink, info.st_ino) == (3, (tree.root / "d/b").stat().st_ino)
    assert (tree.root / "a").read_bytes() == b"shared"


def test_a_link_in_place_of_the_sources_is_not_followed(tree: Tree) -> None:
    tree.make("etc/passwd")
    (tree.root / ".wh..wh.plnk").symlink_to("etc")
    tree.apply(member(".wh..wh.plnk/passwd", b"evil"), member("a", type=HARDLINK, linkname=".wh..wh.plnk/passwd"))
    assert tree.files() == ["a", "etc/passwd"]
    assert (tree.root / "etc/passwd").read_text() == "old"


def test_below_the_root_such_names_are_whiteouts(tree: Tree) -> None:
    tree.make("d/.wh.plnk", "d/f")
    tree.apply(member("d/.wh..wh.plnk"))
    assert tree.files() == ["d/f"]


def test_an_archive_that_is_no_layer_keeps_such_names(tree: Tree) -> None:
    unpack(io.BytesIO(tar(member(".wh.a", b"x"), member("d/.wh..wh..opq"))), tree.root, keep_owners=False)
    assert tree.files() == [".wh.a", "d/.wh..wh..opq"]


ZEROS = bytes(64 << 10)


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (b"x" + ZEROS * 40 + b"y", 2),
        (ZEROS * 40, 0),
        (ZEROS * 40 + b"y", 1),
        (b"x" * 100_000 + ZEROS * 40, 2),
        (b"".join(bytes([1 + n % 9]) + ZEROS for n in range(40)), 41),
        (ZEROS[:-1], 0),
        (bytes(100), 0),
        (bytes(3) + b"x" + bytes(5), 1),
        (b"", 0),
    ],
)
def test_zeros_become_holes(tree: Tree, content: bytes, data: int) -> None:
    """`data` are the stretches of 64 KiB that hold something."""
    tree.apply(member("pad", b"p" * 777), member("f", content))
    assert (tree.root / "f").read_bytes() == content
    assert (tree.root / "f").stat().st_blocks * 512 <= data * len(ZEROS)


def test_zeros_of_an_archive_that_is_no_layer_stay_data(tree: Tree) -> None:
    unpack(io.BytesIO(tar(member("f", ZEROS * 10))), tree.root, keep_owners=False)
    assert (tree.root / "f").stat().st_blocks * 512 >= 10 * len(ZEROS)


def test_an_owner_that_is_in_no_map_names_the_entry(tree: Tree) -> None:
    owners = Owners(IdMap(((0, 100000, 1000),)), IdMap(((0, 200000, 10),)))
    with Unpacker(tree.root, layer=True, owners=owners, keep_owners=False) as unpacker:
        unpacker.apply(Entry(b"fine", EntryType.FILE, 0o644, 999, 9))
        for uid, gid, words in ((1000, 0, "user 1000"), (0, 10, "group 10")):
            with pytest.raises(InvalidValue, match=f"a/b belongs to {words}, which is not in the id map"):
                unpacker.apply(Entry(b"a/b", EntryType.FILE, 0o644, uid, gid))
