"""Hostile archives: nothing that an archive says or does leads a write out of the root."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.errors import DmthinError, InvalidValue, NotPermitted
from dmthin.layers.confine import split
from dmthin.layers.entry import Entry, EntryType, Reader
from dmthin.layers.source import open_source
from dmthin.layers.tree_removal import remove_tree
from dmthin.layers.unpack import unpack
from dmthin.layers.unpacker import Unpacker
from tests.support.examples import examples
from tests.support.tars import member, tar
from tests.support.trees import snapshot

DIRECTORY, SYMLINK, HARDLINK, FIFO = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE


class Site:
    """A root and, beside it, what must never change."""

    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "root"
        self.outside = scratch / "outside"
        self.root.mkdir()
        (self.outside / "folder").mkdir(parents=True)
        (self.outside / "file").write_bytes(b"untouched")
        (self.outside / "folder" / "inner").write_bytes(b"untouched")
        self._before = snapshot(os.fsencode(self.outside))

    def apply(self, *members: tuple[tarfile.TarInfo, bytes]) -> None:
        try:
            unpack(io.BytesIO(tar(*members)), self.root, keep_owners=False)
        finally:
            self.check()

    def refuse(self, *members: tuple[tarfile.TarInfo, bytes]) -> str:
        with pytest.raises(InvalidValue) as caught:
            self.apply(*members)
        assert str(caught.value).isprintable()
        return str(caught.value)

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))

    def check(self) -> None:
        assert snapshot(os.fsencode(self.outside)) == self._before
        assert sorted(os.listdir(self.outside.parent)) == ["outside", "root"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def folder(name: str, mtime: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=DIRECTORY, mode=0o755, mtime=mtime)


def link(name: str, target: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=SYMLINK, linkname=str(target))


def hard(name: str, target: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=HARDLINK, linkname=str(target))


def test_names_that_lead_out_are_clamped(site: Site) -> None:
    site.apply(
        member("/absolute/file", b"1"),
        member("../../up", b"2"),
        member("a/../../../b/./c//d", b"3"),
        folder("../outside/folder"),
        member("//../outside/file", b"4"),
    )
    assert site.names() == [
        "absolute",
        "absolute/file",
        "b",
        "b/c",
        "b/c/d",
        "outside",
        "outside/file",
        "outside/folder",
        "up",
    ]


@pytest.mark.parametrize("target", ["{outside}", "../outside", "../../../../../../{outside}", "/../outside"])
def test_a_link_among_the_parents_is_followed_inside_only(site: Site, target: str) -> None:
    target = target.format(outside=site.outside)
    site.refuse(link("way", target), member("way/file", b"evil"))
    # Where the link's target exists inside, that is where the file goes.
    inside = os.path.normpath("/" + target).lstrip("/")
    (site.root / "way").unlink()
    site.apply(folder(inside), link("way", target), member("way/file", b"good"))
    assert (site.root / inside / "file").read_bytes() == b"good"


def test_a_link_is_replaced_and_not_written_through(site: Site) -> None:
    for name, kind in (("file", member("x", b"evil")), ("folder", folder("x"))):
        site.apply(link("x", site.outside / name), kind)
        assert not (site.root / "x").is_symlink()
        site.apply(link("x", f"../outside/{name}"), kind)
        assert not (site.root / "x").is_symlink()


def test_attributes_are_not_set_through_a_link(site: Site) -> None:
    victim = site.outside / "file"
    site.apply(
        member("s", type=SYMLINK, linkname=str(victim), mode=0o7777, pax_headers={"SCHILY.xattr.user.x": "y"}),
        member("h", type=HARDLINK, linkname="s", mode=0o7777, mtime=1, pax_headers={"SCHILY.xattr.user.x": "y"}),
    )
    assert (site.root / "h").is_symlink()


def test_a_directory_that_becomes_a_link_in_between(site: Site) -> None:
    site.refuse(
        folder("d"),
        member("d/one", b"1"),
        link("d", site.outside / "folder"),
        member("d/two", b"evil"),
    )
    site.refuse(
        folder("d/e"),
        member("d/e/one", b"1"),
        link("d", site.outside),
        member("d/e/two", b"evil"),
        member("d/folder/inner", b"evil"),
    )


def test_a_link_that_moves_in_between(site: Site) -> None:
    site.apply(
        folder("real"),
        folder("other"),
        link("way", "real"),
        member("way/one", b"1"),
        link("way", "other"),
        member("way/two", b"2"),
        folder("way"),
        member("way/three", b"3"),
    )
    assert site.names() == ["other", "other/two", "real", "real/one", "way", "way/three"]


def test_a_link_on_the_way_to_itself(site: Site) -> None:
    site.apply(
        folder("d/e"),
        link("d/y", "e"),
        link("x", "d/y/.."),
        member("x/one", b"1"),
        link("x/y", "/nowhere"),
    )
    assert (site.root / "d" / "one").read_bytes() == b"1"
    site.refuse(member("x/two", b"2"))


def test_hard_links_to_what_is_outside(site: Site) -> None:
    for target in (site.outside / "file", "../outside/file", "../../outside/file"):
        assert "which does not exist" in site.refuse(hard("h", target))
    site.refuse(link("way", site.outside), hard("h", "way/file"))
    site.apply(link("s", site.outside / "file"), hard("h", "s"))  # the link itself has two names then
    assert (site.root / "h").readlink() == site.outside / "file"
    assert (site.outside / "file").stat().st_nlink == 1


def test_hard_links_that_cannot_be(site: Site) -> None:
    assert "which does not exist" in site.refuse(hard("h", "missing"))
    assert "which does not exist" in site.refuse(hard("h", "missing/file"))
    assert "a directory" in site.refuse(folder("d"), hard("h", "d"))
    assert "is the root" in site.refuse(hard("h", "/"))
    assert "is the root" in site.refuse(hard("h", "d/.."))
    assert "the root" in site.refuse(hard(".", "h"))
    site.refuse(hard("d/e", ""))
    site.refuse(member("d/inner", b"1"), hard("d", "d/inner"))  # its target goes with what it replaces


def test_a_hard_link_to_itself_changes_nothing(site: Site) -> None:
    site.apply(member("f", b"data"), hard("g", "f"), hard("g", "f"), hard("f", "f"), hard("f", "./g"))
    assert (site.root / "f").read_bytes() == b"data"
    assert (site.root / "f").stat().st_nlink == 2


def test_a_hard_link_through_a_link_inside(site: Site) -> None:
    site.apply(member("usr/lib/f", b"data"), link("lib", "usr/lib"), hard("lib/g", "lib/f"))
    assert (site.root / "usr/lib/g").stat().st_ino == (site.root / "usr/lib/f").stat().st_ino


@pytest.mark.parametrize("parent", [member("p", b"file"), member("p", type=FIFO), link("p", "p"), link("p", "gone")])
def test_what_is_no_parent(site: Site, parent: tuple[tarfile.TarInfo, bytes]) -> None:
    site.refuse(parent, member("p/file", b"x"))
    site.refuse(parent, folder("p/a/b/c"))


def test_magic_links_are_not_followed(site: Site) -> None:
    for target in ("/proc/self/root", "/proc/self/cwd", "/proc/self/fd/0"):
        site.refuse(link("m", target), member("m/file", b"evil"))


EVERY_TYPE = [
    member("x", b"new"),
    folder("x"),
    link("x", "target"),
    member("x", type=FIFO),
    hard("x", "source"),
]


@pytest.mark.parametrize("old", EVERY_TYPE)
@pytest.mark.parametrize("new", EVERY_TYPE)
def test_every_type_replaces_every_type(
    site: Site, old: tuple[tarfile.TarInfo, bytes], new: tuple[tarfile.TarInfo, bytes]
) -> None:
    site.apply(member("source", b"old"), member("target", b"kept"), old, new)
    kind = stat.S_IFMT(os.lstat(site.root / "x").st_mode)
    assert (
        kind
        == {
            tarfile.REGTYPE: stat.S_IFREG,
            DIRECTORY: stat.S_IFDIR,
            SYMLINK: stat.S_IFLNK,
            FIFO: stat.S_IFIFO,
            HARDLINK: stat.S_IFREG,
        }[new[0].type]
    )
    assert (site.root / "target").read_bytes() == b"kept"
    assert (site.root / "source").read_bytes() == b"old"


def test_a_directory_entry_keeps_the_content(site: Site) -> None:
    site.apply(folder("d"), member("d/f", b"1"), member("d", type=DIRECTORY, mode=0o711, mtime=5))
    assert (site.root / "d/f").read_bytes() == b"1"
    assert (stat.S_IMODE((site.root / "d").stat().st_mode), (site.root / "d").stat().st_mtime) == (0o711, 5)


def test_a_full_directory_is_replaced(site: Site) -> None:
    site.apply(member("d/e/f/g", b"1"), link("d/out", site.outside), member("d/e/h", b"2"), member("d", b"file"))
    assert site.names() == ["d"]


def test_the_root_itself(site: Site) -> None:
    for name in (".", "./", "/", "", "a/..", "../.."):
        os.chmod(site.root, 0o755)
        site.apply(member(name, type=DIRECTORY, mode=0o750, mtime=7))
        assert stat.S_IMODE(site.root.stat().st_mode) == 0o750
        assert site.root.stat().st_mtime == 7
        for other in (member(name, b"data"), link(name, "x"), member(name, type=FIFO), hard(name, "x")):
            assert "replace the root" in site.refuse(other)


def test_names_that_no_file_system_takes(site: Site) -> None:
    assert "NUL" in site.refuse(member("a", b"x", pax_headers={"path": "a\0b"}))
    assert "longer than 4095" in site.refuse(member("a/" * 2048 + "x", b""))
    assert "too long" in site.refuse(member("c" * 256, b""))
    assert "too long" in site.refuse(member("c" * 256 + "/d", b""))
    assert "an invalid target" in site.refuse(link("l", ""))
    assert "an invalid target" in site.refuse(member("l", type=SYMLINK, pax_headers={"linkpath": "a\0b"}))
    assert "an invalid target" in site.refuse(member("l", type=HARDLINK, pax_headers={"linkpath": "a\0b"}))
    assert "too long" in site.refuse(link("l", "t" * 5000))
    site.refuse(hard("l", "t" * 5000))
    assert "NUL" not in site.refuse(member("x", b"", pax_headers={"SCHILY.xattr.user.a\0b": "c"}))


def test_odd_names_that_a_file_system_takes(site: Site) -> None:
    site.apply(member("new\nline", b"1"), member("n" * 255, b"2"), member("\udcff\udcfe", b"3"), member(" ", b"4"))
    assert sorted(os.listdir(os.fsencode(site.root))) == sorted([b"new\nline", b"n" * 255, b"\xff\xfe", b" "])


def test_the_deepest_tree_is_made_and_replaced(site: Site) -> None:
    path = "a/" * 2040
    site.apply(member(path + "f", b"1"), member(path + "g", b"2"), folder(path[:-1]))
    # Through links it gets deeper than any path: descriptors and recursion must not run out.
    path = path[:4080]
    site.apply(
        link("l0", path[:-1]),
        folder("l0/" + path[:-10]),
        link("l1", "l0/" + path[:-10]),
        folder("l1/" + path[:-10]),
        member("l1/" + path[:1900] + "f", b"3"),
    )
    site.apply(member("a", b"file"))
    assert (site.root / "a").read_bytes() == b"file"
    assert site.names() == ["a", "l0", "l1"]


def test_a_missing_parent_is_made_with_0755(site: Site) -> None:
    old = os.umask(0o077)
    try:
        site.apply(member("p/q/f", b"1", mode=0o644))
    finally:
        os.umask(old)
    assert stat.S_IMODE((site.root / "p").stat().st_mode) == 0o755
    assert stat.S_IMODE((site.root / "p/q").stat().st_mode) == 0o755
    assert stat.S_IMODE((site.root / "p/q/f").stat().st_mode) == 0o644


def test_directories_keep_their_times(site: Site) -> None:
    """Also when later entries, in any order and by other paths, add, link and remove in them."""
    names = [f"d{n}" for n in range(200)]  # more than are kept open
    site.apply(
        *(member(name, type=DIRECTORY, mode=0o755, mtime=n + 1) for n, name in enumerate(names)),
        link("way", "d3"),
        *(member(f"{name}/f", b"x") for name in names),
        *(hard(f"{name}/g", "d0/f") for name in reversed(names)),
        member("way/more", b"y"),
        folder("d3/missing/inner", mtime=9),
        member("way/f", b"again"),
        member("d5/f", type=DIRECTORY, mode=0o755, mtime=77),
        link("d5/f", "x"),
        member("d7", type=DIRECTORY, mode=0o755, mtime=5000),
        member("d7/last", b""),
        member(".", type=DIRECTORY, mode=0o755, mtime=1234),
        member("z", b""),
    )
    times = {name: (site.root / name).stat().st_mtime for name in names}
    assert times == {name: 5000 if n == 7 else n + 1 for n, name in enumerate(names)}
    assert site.root.stat().st_mtime == 1234
    assert (site.root / "d3/missing/inner").stat().st_mtime == 9


def test_no_descriptor_stays_open(site: Site) -> None:
    before = set(os.listdir("/proc/self/fd"))
    site.apply(*(member(f"d{n}/e/f", b"x") for n in range(300)))
    site.refuse(*(member(f"d{n}/e/f", b"x") for n in range(100)), hard("x", "missing"))
    site.refuse(member("a/b/c", b"x"), member("a/b/c/d/e", b"x"))
    site.refuse(link("l", "gone"), folder("l/a/b/c"))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_limit_of_entries(site: Site) -> None:
    data = tar(*(member(f"f{n}", b"") for n in range(11)))
    with pytest.raises(InvalidValue, match="more than 10 entries"):
        unpack(io.BytesIO(data), site.root, keep_owners=False, max_entries=10)
    unpack(io.BytesIO(data), site.root, keep_owners=False, max_entries=11)


def test_a_reader_that_ends_early(site: Site) -> None:
    with (
        Unpacker(site.root, keep_owners=False) as unpacker,
        pytest.raises(InvalidValue, match="shorter than its size"),
    ):
        unpacker.apply(Entry(b"f", EntryType.FILE, 0o644, size=5))


def test_a_root_by_descriptor_stays_the_callers(site: Site) -> None:
    fd = os.open(site.root, os.O_PATH | os.O_DIRECTORY)
    unpack(io.BytesIO(tar(member("f", b"x"))), fd, keep_owners=False)
    os.close(fd)
    assert site.names() == ["f"]


def test_an_older_kernel_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("dmthin.layers.confine.open_below", refuse)
    with pytest.raises(DmthinError, match=r"Linux 5\.6"):
        site.apply(member("a/f", b"x"))


def test_remove_tree_takes_no_link_for_a_directory(site: Site) -> None:
    (site.root / "t").mkdir()
    (site.root / "t/l").symlink_to(site.outside)
    fd = os.open(site.root, os.O_RDONLY)
    remove_tree(fd, b"t")
    os.close(fd)
    site.check()
    assert site.names() == []


@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b"b", b"..."]), max_size=8))
def test_split_is_normpath_from_the_root(parts: list[bytes]) -> None:
    path = b"/".join(parts)
    parent, name = split(path)
    assert os.path.normpath(b"/" + path).replace(b"//", b"/") == b"/" + (parent + b"/" + name if parent else name)


# Few names and short targets, so that links, directories and files get into each other's way.
_names = st.lists(st.sampled_from(["a", "b", "c", "..", "outside", "folder"]), min_size=1, max_size=4).map("/".join)
_targets = st.one_of(_names, _names.map("/".__add__), _names.map("../".__add__), st.just("{outside}"))
_members = st.one_of(
    st.tuples(st.just("file"), _names),
    st.tuples(st.just("directory"), _names),
    st.tuples(st.just("fifo"), _names),
    st.tuples(st.just("symlink"), _names, _targets),
    st.tuples(st.just("symlink"), _names, _targets),
    st.tuples(st.just("hardlink"), _names, _targets),
)


def _made(recipe: tuple[str, ...], outside: Path) -> tuple[tarfile.TarInfo, bytes]:
    target = recipe[2].format(outside=outside) if len(recipe) > 2 else ""
    match recipe[0]:
        case "file":
            return member(recipe[1], b"evil", mode=0o666, mtime=1)
        case "directory":
            return folder(recipe[1])
        case "fifo":
            return member(recipe[1], type=FIFO)
        case "symlink":
            return link(recipe[1], target)
        case _:
            return hard(recipe[1], target)


@examples(usual=75, deep=3000)
@given(st.lists(_members, min_size=1, max_size=25))
def test_any_order_of_entries_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, recipes: list[tuple[str, ...]]
) -> None:
    """Entry by entry, each applied although the one before was refused."""
    site = Site(tmp_path_factory.mktemp("site"))
    with Unpacker(site.root, keep_owners=False) as unpacker:
        for recipe in recipes:
            try:
                for entry, data in _entries(tar(_made(recipe, site.outside))):
                    unpacker.apply(entry, data)
            except InvalidValue:
                pass
            except NotPermitted:
                assert os.geteuid() != 0
    site.check()


def _entries(data: bytes) -> Iterator[tuple[Entry, Reader]]:
    with open_source(io.BytesIO(data)) as source:
        yield from source
