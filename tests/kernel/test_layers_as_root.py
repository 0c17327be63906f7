"""What only root can make, on the file systems that volumes have: owners, devices, all attributes."""

import io
import logging
import os
import stat
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dmthin.errors import InvalidValue, NoDataSpace
from dmthin.layers.compare import ChangeKind
from dmthin.layers.entry import NO_DATA, Entry, EntryType
from dmthin.layers.source import open_source
from dmthin.layers.unpack import unpack
from dmthin.layers.unpacker import Unpacker
from tests.support.examples import examples
from tests.support.pairs import pair_in
from tests.support.tars import member, tar
from tests.support.trees import CAPABILITY

HARDLINK = EntryType.HARDLINK
NO_ID = 0xFFFFFFFF
"""The id in an entry of an access control list without a name."""


Listing = dict[bytes, tuple[Entry, bytes, tuple[int, int]]]


def listing(tree: Path) -> Listing:
    """All of a tree: entries, data and the owner and mode of each name, hard links included."""
    found: Listing = {}
    with open_source(tree) as source:
        for entry, data in source:
            content = b""
            while piece := data.read(1 << 20):
                content += piece
            found[entry.path] = entry, content, (entry.uid, entry.mode)
    return found


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty file system of its own; its name is that of its kind."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("DMTHIN_VM_SCRATCH")) as scratch:
        image, target = Path(scratch, "image"), Path(scratch, request.param)
        target.mkdir()
        image.touch()
        os.truncate(image, 512 << 20)
        subprocess.run([f"mkfs.{request.param}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, target], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", target], check=True)


@pytest.fixture
def root(disk: Path) -> Iterator[Path]:
    """An empty folder on `disk`."""
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        path = Path(scratch, "root")
        path.mkdir()
        yield path


ids = st.sampled_from([0, 1, 1000, 65534, 2**31, 2**32 - 2])
modes = st.integers(0, 0o7777)
times = st.integers(0, 4 * 10**18)
values = st.one_of(st.binary(max_size=60), st.just(b""))
any_xattrs = st.dictionaries(st.sampled_from(["trusted.t", "trusted.a=b%3D%", "trusted.\udcff"]), values, max_size=2)
file_xattrs = st.one_of(
    any_xattrs,
    st.dictionaries(st.sampled_from(["user.u", "user.\n"]), values, max_size=2),
    st.just({"security.capability": CAPABILITY}),
)
paths = st.lists(st.sampled_from([b"a", b"b", b"c", b"\xff", b"d" * 200]), min_size=1, max_size=3).map(b"/".join)
devices = st.tuples(st.integers(0, 0x1FF), st.integers(0, (1 << 18) - 1)).map(lambda pair: os.makedev(*pair))
"""xfs takes 9 bits of major and 18 of minor number, where the kernel has 12 and 20 (xfs_generic_create)."""


def _entry(kind: EntryType) -> st.SearchStrategy[Entry]:
    node = kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
    plain = kind in (EntryType.FILE, EntryType.DIRECTORY)
    return st.builds(
        Entry,
        paths,
        st.just(kind),
        modes,
        ids,
        ids,
        times,
        link=st.sampled_from([b"a", b"/b", b"c/../d"]) if kind is EntryType.SYMLINK else st.just(b""),
        device=devices if node else st.just(0),
        xattrs=file_xattrs if plain else any_xattrs,
    )


recipes = st.lists(
    st.one_of(
        *(_entry(kind) for kind in EntryType if kind is not HARDLINK),
        _entry(EntryType.DIRECTORY),
        st.builds(Entry, paths, st.just(HARDLINK), st.just(0), link=paths),
    ),
    min_size=1,
    max_size=12,
)


@settings(examples(usual=20, deep=400), phases=[Phase.generate])
@given(recipes, modes, ids)
def test_a_tree_of_all_that_root_can_make(disk: Path, recipe: list[Entry], mode: int, owner: int) -> None:
    """Made from entries, then read by the walker and by GNU tar, it comes out the same."""
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        made, walked = Path(scratch, "made"), Path(scratch, "walked")
        made.mkdir()
        with Unpacker(made) as unpacker:
            unpacker.apply(Entry(b".", EntryType.DIRECTORY, mode, owner, owner, 5, xattrs={"trusted.r": b"r"}))
            for entry in recipe:
                try:
                    unpacker.apply(entry)
                except InvalidValue:
                    assert entry.type is HARDLINK or b"/" in entry.path
        expected = listing(made)
        if not any(entry.type in (HARDLINK, EntryType.SYMLINK) for entry in recipe):
            for path, (found, _, _) in expected.items():
                wanted = [entry for entry in recipe if entry.path == path and entry.type is found.type]
                if wanted and found.type is not EntryType.DIRECTORY:
                    assert found == wanted[-1]
        walked.mkdir()
        unpack(made, walked)
        assert listing(walked) == expected
        linked = {expected[entry.link][0].type for entry, _, _ in expected.values() if entry.type is HARDLINK}
        if linked & {EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE, EntryType.FIFO}:
            return  # GNU tar writes the second name of a node as a node of its own
        for options in (["--format=pax"], ["--format=pax", "--sparse"]):
            archive, packed = Path(scratch, "tar"), Path(scratch, "".join(options))
            packed.mkdir()
            command = [
                "tar",
                "--xattrs",
                "--xattrs-include=*",
                *options,
                "-C",
                str(made),
                "-cf",
                str(archive),
                ".",
            ]
            subprocess.run(command, check=True, capture_output=True)
            unpack(archive, packed)
            assert listing(packed) == expected


def test_set_uid_and_capabilities_survive_the_change_of_owner(root: Path) -> None:
    program = Entry(
        b"p",
        EntryType.FILE,
        0o6755,
        1000,
        1000,
        1,
        xattrs={"security.capability": CAPABILITY, "user.x": b"\0\xff"},
    )
    with Unpacker(root) as unpacker:
        unpacker.apply(program)
        unpacker.apply(Entry(b"q", HARDLINK, 0, 7, 7, 9, link=b"p"))
    info = (root / "q").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_nlink) == (0o6755, 1000, 1000, 2)
    assert os.getxattr(root / "q", "security.capability") == CAPABILITY
    assert os.getxattr(root / "q", "user.x") == b"\0\xff"


def test_missing_parents_belong_to_root(root: Path) -> None:
    root.chmod(0o2777)
    os.chown(root, 1000, 1000)
    unpack(io.BytesIO(tar(member("a/b/f", b"x", uid=5, gid=6))), root)
    for path in ("a", "a/b"):
        info = (root / path).stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode) & 0o777) == (0, 0, 0o755)
    assert ((root / "a/b/f").stat().st_uid, (root / "a/b/f").stat().st_gid) == (5, 6)
    assert (root.stat().st_uid, stat.S_IMODE(root.stat().st_mode)) == (1000, 0o2777)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_no_parent_and_is_never_opened(root: Path, kind: bytes) -> None:
    # Major 240 is for local use: nobody answers there, and an open would say ENXIO.
    node = member("n", type=kind, devmajor=240, devminor=77, mode=0o640)
    with pytest.raises(InvalidValue, match="Not a directory"):
        unpack(io.BytesIO(tar(node, member("n/f", b"x"))), root)
    assert stat.S_IMODE(os.lstat(root / "n").st_mode) == 0o640
    unpack(io.BytesIO(tar(node, member("n", b"x"))), root)
    assert (root / "n").read_bytes() == b"x"


def test_a_link_that_linux_does_not_follow(root: Path) -> None:
    """In a sticky directory open to all, not even root follows another's link (fs.protected_symlinks)."""
    sticky = member("tmp", type=tarfile.DIRTYPE, mode=0o1777)
    way = member("tmp/way", type=tarfile.SYMTYPE, linkname="/", uid=1000)
    with pytest.raises(InvalidValue, match="forbids following another user's link in a sticky directory"):
        unpack(io.BytesIO(tar(sticky, way, member("tmp/way/f", b"x"))), root)


@pytest.fixture
def small(root: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50,mode=755", "small", root], check=True)
    yield root
    subprocess.run(["umount", root], check=True)


def test_a_full_file_system_names_the_entry(small: Path) -> None:
    with pytest.raises(NoDataSpace, match="no space left for the file big/file"):
        unpack(io.BytesIO(tar(member("fits", b"x"), member("big/file", bytes(2 << 20)))), small)


def test_a_file_system_without_inodes_names_the_entry(small: Path) -> None:
    with pytest.raises(NoDataSpace, match="no space left for the directory d4"):
        unpack(io.BytesIO(tar(*(member(f"d{n}", type=tarfile.DIRTYPE) for n in range(100)))), small)


def test_a_mount_point_is_listed_and_what_is_below_is_not(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    (small / "hidden").write_bytes(b"")
    (small.parent / "z").write_bytes(b"")
    assert list(listing(small.parent)) == [b".", b"root", b"z"]
    assert "skipped the file system mounted at root" in caplog.text
    with Unpacker(small.parent) as unpacker:
        for path, kind in (
            (b"root/file", EntryType.FILE),
            (b"root", EntryType.FILE),
            (b"root", EntryType.DIRECTORY),
        ):
            with pytest.raises(InvalidValue, match="cross-device"):
                unpacker.apply(Entry(path, kind, 0o644))
    assert os.listdir(small) == ["hidden"]


def test_attributes_that_cannot_be_set_are_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    pax = {"SCHILY.xattr.bogus.name": "x", "SCHILY.xattr.user.fine": "y"}
    with caplog.at_level(logging.WARNING):
        unpack(io.BytesIO(tar(*(member(f"f{n}", pax_headers=dict(pax)) for n in range(5)))), root)
        fifo = Entry(b"p", EntryType.FIFO, 0o600, xattrs={"user.no": b"x"})
        with Unpacker(root) as unpacker:
            unpacker.apply(fifo, NO_DATA)
    assert [record.getMessage().split(" of ")[0] for record in caplog.records] == [
        "skipped the attribute bogus.name",
        "skipped the attribute user.no",
    ]
    assert os.getxattr(root / "f4", "user.fine") == b"y"


def test_an_attribute_beyond_the_file_system_is_not_a_full_disk(disk: Path, root: Path) -> None:
    """ext4 holds 4 KiB of attributes per file and answers ENOSPC beyond; the limit of all is 64 KiB."""
    for size in (10_000, 100_000):
        entry = Entry(b"f", EntryType.FILE, 0o644, xattrs={"user.big": bytes(size)})
        with Unpacker(root) as unpacker:
            if disk.name == "xfs" and size == 10_000:
                unpacker.apply(entry)
                assert os.getxattr(root / "f", "user.big") == bytes(size)
            else:
                with pytest.raises(InvalidValue, match="too large for this file system"):
                    unpacker.apply(entry)


def test_a_file_larger_than_the_file_system_can_hold(disk: Path, root: Path) -> None:
    """xfs takes the greatest offset there is."""
    pax = {"GNU.sparse.size": str((1 << 63) - 1), "GNU.sparse.map": f"{(1 << 63) - 5},4"}
    archive = io.BytesIO(tar(member("f", b"data", pax_headers=pax)))
    if disk.name == "xfs":
        unpack(archive, root)
        assert (root / "f").stat().st_size == (1 << 63) - 1
    else:
        with pytest.raises(InvalidValue, match="cannot create the file f: File too large"):
            unpack(archive, root)


def test_changed_owners_and_devices_are_changes(tmp_path: Path) -> None:
    pair = pair_in(tmp_path)
    for side, minor in ((pair.old, 1), (pair.new, 2)):
        os.mknod(side / "n", 0o20644, os.makedev(240, minor))
        os.utime(side / "n", ns=(0, 0))
    os.chown(pair.new / "a", 5, 0)
    os.chown(pair.new / "s", 0, 5, follow_symlinks=False)
    os.chown(pair.new / "d", 5, 5)
    assert pair.changes() == [(ChangeKind.MODIFIED, path) for path in ("a", "d", "n", "s")]


def test_what_gnu_tar_writes_of_lists_and_labels_is_kept(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"x")
    access = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, NO_ID), (2, 6, 1000), (4, 4, NO_ID), (8, 5, 70), (16, 7, NO_ID), (32, 4, NO_ID))
    )
    os.setxattr(source / "inner" / "file", "system.posix_acl_access", access)
    os.setxattr(source / "inner", "system.posix_acl_default", access)
    archive = tmp_path / "archive.tar"
    words = ["--acls", "--numeric-owner", "-V", "a label", "-g", str(tmp_path / "snar"), "-C", str(source)]
    subprocess.run(["tar", *words, "-cf", archive, "."], check=True)
    unpack(archive, root)
    assert os.getxattr(root / "inner" / "file", "system.posix_acl_access") == access
    assert os.getxattr(root / "inner", "system.posix_acl_default") == access
    assert sorted(os.listdir(root)) == ["inner"]
    assert sorted(os.listdir(root / "inner")) == ["file"]


def test_a_list_that_is_not_complete_is_left_out_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = tar(member("file", b"x", pax_headers={"SCHILY.acl.access": "user::rw-,user:77:r--"}))  # no mask
    with caplog.at_level(logging.WARNING):
        unpack(io.BytesIO(archive), root)
    assert "system.posix_acl_access" not in os.listxattr(root / "file")
    assert "skipped the attribute system.posix_acl_access of file" in caplog.text


def test_an_attribute_that_the_kernel_refuses_is_named(root: Path) -> None:
    capability = {"SCHILY.xattr.security.capability": "\1\2"}
    with pytest.raises(InvalidValue, match="does not accept the value of the attribute security"):
        unpack(io.BytesIO(tar(member("program", b"x", pax_headers=capability))), root)
