"""Mounts by system call, the mount table, and who holds a volume busy."""

import ctypes
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmthin.errors import InUse, InvalidValue, NotFound, NotPermitted
from dmthin.kernel import block, holders, mount
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.units import MIB, SECTOR
from tests.support import processes, rigs
from tests.support.processes import program
from tests.support.rigs import Disk


@pytest.fixture
def disk(dm: IoctlDeviceMapper, scratch: Path) -> Iterator[Disk]:
    """A disk with an ext4 on it."""
    with rigs.disk(dm, scratch / "disk", 16 * MIB) as made:
        program("mkfs.ext4", "-q", "-E", "nodiscard", str(made.node))
        yield made


@pytest.fixture
def place(scratch: Path) -> Path:
    folder = scratch / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def mounted(disk: Disk, place: Path) -> Iterator[Path]:
    mount.mount(str(disk.node), place, "ext4")
    yield place
    mount.unmount(place)


def device_number(disk: Disk) -> int:
    return disk.dm.info(disk.name).dev


# --- options and places ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ("", 0, ""),
        ("defaults", 0, ""),
        ("ro,nosuid,nodev,noexec", 15, ""),
        ("ro,rw", 0, ""),
        ("noatime,discard,,data=ordered", 1024, "discard,data=ordered"),
        ("nodev,dev,sync", 16, ""),
    ],
)
def test_options_are_split_into_flags_and_the_file_systems_own(options: str, flags: int, data: str) -> None:
    assert mount.split_options(options) == (flags, data)


def test_mount_with_options(disk: Disk, place: Path) -> None:
    mount.mount(str(disk.node), place, "ext4", "ro,noatime,nodev,errors=remount-ro,dioread_nolock")
    try:
        (entry,) = mount.of_device(device_number(disk))
        assert (entry.target, entry.root, entry.fs_type, entry.source) == (str(place), "/", "ext4", str(disk.node))
        assert set(entry.options.split(",")) >= {"ro", "noatime", "nodev"}
        assert entry in mount.table()
        assert mount.at(place)
        with pytest.raises(OSError, match="Read-only"):
            (place / "file").touch()
    finally:
        mount.unmount(place)
    assert mount.of_device(device_number(disk)) == []
    assert not mount.at(place)


def test_what_cannot_be_mounted(disk: Disk, place: Path) -> None:
    with pytest.raises(InvalidValue, match="bad option"):
        mount.mount(str(disk.node), place, "ext4", "no_such_option")
    with pytest.raises(NotFound):
        mount.mount(str(disk.node), place / "nothing", "ext4")
    with pytest.raises(InvalidValue, match="superblock"):
        mount.mount(str(disk.node), place, "xfs")
    mount.mount(str(disk.node), place, "ext4")
    with pytest.raises(InUse):
        mount.mount(str(disk.node), place, "ext4")
    mount.unmount(place)


def test_unmount_of_what_is_busy_or_not_mounted(mounted: Path) -> None:
    with (mounted / "file").open("w"), pytest.raises(InUse, match=str(mounted)):
        mount.unmount(mounted)
    with pytest.raises(NotFound, match="nothing is mounted"):
        mount.unmount(mounted / "file")
    with pytest.raises(NotFound):
        mount.unmount(mounted / "nothing")


def test_lazy_unmount_leaves_it_to_the_last_user(dm: IoctlDeviceMapper, disk: Disk, place: Path) -> None:
    mount.mount(str(disk.node), place, "ext4")
    with (place / "file").open("w") as file:
        mount.unmount(place, lazy=True)
        assert not mount.at(place)
        file.write("still here")
        with pytest.raises(InUse):
            dm.remove(disk.name)
    assert dm.info(disk.name).open_count == 0


def test_mounting_needs_rights(disk: Disk, place: Path) -> None:
    def try_as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(NotPermitted):
            mount.mount(str(disk.node), place, "ext4")
        with pytest.raises(NotPermitted):
            mount.unmount(place)

    with processes.child(try_as_nobody) as pid:
        assert processes.outcome(pid) == 0


@pytest.mark.parametrize(
    "name",
    [
        b"a space",
        b"a\nnewline",
        b"a\ttab",
        b"a\\backslash",
        b"a\\040fake",
        b"a#hash",
        b"not-\xff-utf8",
        "ä ☃".encode(),
        b"a\rreturn",
        b"a\x0bvertical",
        b"a\x0cform",
        b"a\x1cseparator",
        b"a\xc2\x85next",
        "a\u2028line".encode(),
        b" - ",
    ],
)
def test_places_with_odd_characters(place: Path, name: bytes) -> None:
    target = place / os.fsdecode(name)
    target.mkdir()
    mount.mount("a source", target, "tmpfs", "size=64k")
    try:
        (entry,) = mount.under(place)
        assert entry.target == str(target)
        assert entry.source == "a source"
        assert mount.at(target)
        assert Path(entry.target).is_mount()
    finally:
        mount.unmount(target)


def test_an_empty_source(place: Path) -> None:
    mount.mount("", place, "tmpfs")
    (entry,) = mount.under(place)
    assert (entry.source, entry.fs_type) == ("", "tmpfs")
    mount.unmount(place)


def test_mounts_below_a_folder_come_innermost_first(place: Path) -> None:
    inner, beside = place / "inner", place.with_name("place-beside")
    beside.mkdir()
    mount.mount("outer", place, "tmpfs")
    inner.mkdir()
    mount.mount("old", inner, "tmpfs")
    mount.mount("new", inner, "tmpfs")
    mount.mount("beside", beside, "tmpfs")
    assert [entry.source for entry in mount.under(place)] == ["new", "old", "outer"]
    for entry in mount.under(place):
        mount.unmount(Path(entry.target))
    assert mount.at(beside)
    mount.unmount(beside)


def test_the_mount_table_of_a_process_that_is_gone() -> None:
    assert mount.table(2**22 + 1) == []
    assert mount.of_device(1, 2**22 + 1) == []


# --- propagation ----------------------------------------------------------------------------------------------------


@contextmanager
def other_namespace(*command: str) -> Iterator[int]:
    """A process in a mount namespace of its own, which hears of ours (slave); its pid, once the command has run."""
    script = " && ".join(filter(None, [*command, "echo ready", "exec sleep 1000"]))
    arguments = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd="/") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            yield child.pid
        finally:
            child.kill()


def test_mounts_below_a_shared_folder_reach_other_namespaces(disk: Disk, place: Path) -> None:
    mount.ensure_shared(place)
    try:
        (entry,) = mount.under(place)
        assert entry.shared
        (place / "here").mkdir()
        with other_namespace() as pid:
            mount.mount(str(disk.node), place / "here", "ext4")
            assert [entry.target for entry in mount.of_device(device_number(disk), pid)] == [str(place / "here")]
            mount.unmount(place / "here")
            assert mount.of_device(device_number(disk), pid) == []
    finally:
        mount.unmount(place)


def test_without_that_they_do_not(disk: Disk, place: Path) -> None:
    """The counter-check: on this kernel / is private."""
    with other_namespace() as pid:
        mount.mount(str(disk.node), place, "ext4")
        assert mount.of_device(device_number(disk), pid) == []
        mount.unmount(place)


def test_ensure_shared_twice_is_one_mount(place: Path) -> None:
    mount.ensure_shared(place)
    mount.ensure_shared(place)
    (place / "below").mkdir()
    mount.ensure_shared(place / "below")
    assert [entry.target for entry in mount.under(place)] == [str(place)]
    mount.unmount(place)


def test_ensure_shared_where_the_folder_is_a_private_mount(place: Path) -> None:
    mount.mount("tmpfs", place, "tmpfs")
    mount.ensure_shared(place)
    (entry,) = mount.under(place)
    assert (entry.fs_type, entry.shared) == ("tmpfs", True)
    mount.unmount(place)


# --- who holds it ---------------------------------------------------------------------------------------------------


def _map_file(path: Path) -> object:
    """Map a file and close it; Python's own mmap would keep it open."""
    libc = ctypes.CDLL(None)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
    with path.open("rb") as file:
        return libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)


@contextmanager
def stopped(action: Callable[[], object]) -> Iterator[int]:
    """A process that has done `action` and stands still; its pid."""

    def act() -> None:
        kept = action()
        os.kill(os.getpid(), signal.SIGSTOP)
        del kept

    with processes.child(act) as pid:
        os.waitpid(pid, os.WUNTRACED)
        yield pid


@pytest.mark.parametrize(
    ("action", "how"),
    [
        (lambda place: (place / "file").open(), "has {place}/file open"),
        (os.chdir, "its current folder"),
        (os.chroot, "its root"),
        (lambda place: _map_file(place / "file"), "a mapped file"),
    ],
    ids=["open file", "current folder", "root", "mapped file"],
)
def test_a_process_that_uses_a_file_system(
    disk: Disk, mounted: Path, action: Callable[[Path], object], how: str
) -> None:
    (mounted / "file").write_bytes(bytes(4096))
    with stopped(lambda: action(mounted)) as pid:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        assert f"{name} (pid {pid}, {how.format(place=mounted)})" in holders.describe(device_number(disk))
        with pytest.raises(InUse):
            mount.unmount(mounted)


def test_a_program_on_it_that_runs(disk: Disk, mounted: Path) -> None:
    program = mounted / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "1000"]) as child:
        try:
            assert f"program (pid {child.pid}, its program)" in holders.describe(device_number(disk))
        finally:
            child.kill()


def test_a_process_with_the_block_device_open(disk: Disk) -> None:
    assert holders.of_device(device_number(disk)) == []
    assert holders.describe(device_number(disk)) == holders.UNSEEN
    with stopped(lambda: os.open(disk.node, os.O_RDONLY)) as pid:
        assert f"(pid {pid}, has {disk.node} open)" in holders.describe(device_number(disk))


def test_a_mount(disk: Disk, mounted: Path) -> None:
    assert holders.describe(device_number(disk)) == f"{mounted} (a mount)"


def test_a_bind_mount_in_another_namespace(disk: Disk, place: Path, scratch: Path) -> None:
    """Unmounted here, still held there: the usual reason for a volume that stays busy and nobody knows why."""
    (scratch / "there").mkdir()
    mount.mount(str(disk.node), place, "ext4")
    with other_namespace(f"mount --bind {place} {scratch}/there", f"umount {place}") as pid:
        mount.unmount(place)
        words = holders.describe(device_number(disk))
        assert words == f"sleep (pid {pid}, mounted at {scratch}/there in its mount namespace)"
        assert disk.dm.info(disk.name).open_count == 1


def test_a_device_above(dm: IoctlDeviceMapper, disk: Disk) -> None:
    above = dm.create("rig-above", table=[Target(0, 8 * MIB // SECTOR, "linear", f"{disk.number} 0")])
    try:
        assert holders.describe(device_number(disk)) == f"dm-{above.minor} (a device above)"
    finally:
        dm.remove("rig-above")


def test_many_holders_are_counted(disk: Disk) -> None:
    descriptors = [os.open(disk.node, os.O_RDONLY)]
    try:
        with stopped(lambda: None), stopped(lambda: None), stopped(lambda: None):
            words = holders.describe(device_number(disk), limit=2)
            assert words.endswith(", and 2 more")
            assert words.count("pid") == 2
    finally:
        for fd in descriptors:
            os.close(fd)


def test_block_device_sizes(disk: Disk) -> None:
    assert block.size(disk.node) == 16 * MIB
    assert block.signature(disk.node) == "ext4"
    assert block.node_of(disk.number) == disk.node
    assert block.describe(f"7:{disk.loop.index}") == str(disk.path)
