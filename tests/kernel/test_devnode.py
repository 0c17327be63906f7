"""Device nodes on devtmpfs, and in a mount namespace whose /dev is a tmpfs with nothing but /dev/null.

Each test of such a /dev runs in a process there.
"""

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import KernelError, NotFound, Unavailable
from dmthin.kernel import block, devnode, loop, mount
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.units import MIB
from enginelib.waiting import until
from tests.support import loop_module, processes

ZERO = [Target(0, 8, "zero", "")]
NAME = "dmthin-test-node"


def nodes() -> list[str]:
    """The device nodes below /dev, but for /dev/null."""
    found = [path for path in Path("/dev").rglob("*") if path.is_block_device() or path.is_char_device()]
    return sorted(str(path.relative_to("/dev")) for path in found if path.name != "null")


def waits_for_a_lock() -> bool:
    """Whether a process or a thread waits for a lock of flock(2)."""
    return "-> FLOCK" in Path("/proc/locks").read_text()


def with_static_dev(action: Callable[[], object]) -> None:
    """Run `action` in a process with such a /dev; afterwards no node is left there."""

    def run() -> None:
        processes.unshare_mounts()
        mount.mount("none", Path("/dev"), "tmpfs")
        os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        devnode._is_static.cache_clear()  # the process that has forked this one has another /dev
        action()
        assert nodes() == []

    assert processes.run(run) == 0


def test_a_device_has_a_node_while_it_is_there() -> None:
    def run() -> None:
        with IoctlDeviceMapper() as dm:
            info = dm.create(NAME, table=ZERO)
            assert nodes() == [f"dm-{info.minor}"]
            assert block.size(Path(info.node)) == 4096
            Path(info.node).unlink()
            assert dm.info(NAME).node == info.node
            assert block.number(Path(info.node)) == info.number
            dm.remove(NAME)

    with_static_dev(run)


def test_a_device_that_is_removed_later() -> None:
    """Its node goes with the next removal, or with the end of the next process."""

    def run() -> None:
        with IoctlDeviceMapper() as dm:
            info = dm.create(NAME, table=ZERO)
            with block.opened(Path(info.node)):
                assert not dm.remove(NAME, deferred=True)
            assert nodes() == [f"dm-{info.minor}"]

    with_static_dev(run)


def test_dmsetup_makes_and_removes() -> None:
    def run() -> None:
        info = Dmsetup().create(NAME, "", ZERO)
        assert nodes() == [f"dm-{info.minor}", f"mapper/{NAME}"]
        Dmsetup().remove(NAME)

    with_static_dev(run)


def test_loops_of_others_stay_without_a_node(scratch: Path) -> None:
    for name in ("own", "foreign"):
        block.make_sparse(scratch / name, MIB)

    def run() -> None:
        own = loop.attach(scratch / "own")
        assert nodes() == [f"loop{own.index}"]
        found = loop.find(scratch / "foreign")
        assert found is not None
        assert nodes() == sorted([f"loop{own.index}", f"loop{found.index}"])
        assert loop.find(scratch / "own") == own
        own.detach()
        Path(found.node).unlink()
        assert loop.find(scratch / "missing") is None

    foreign = loop.attach(scratch / "foreign")
    try:
        with_static_dev(run)
    finally:
        foreign.detach()


def test_what_a_killed_process_has_left_goes() -> None:
    def run() -> None:
        Path("/dev/mapper").mkdir()
        for node, minor in ((devnode.DM_CONTROL, 236), (devnode.LOOP_CONTROL, 237)):
            os.mknod(node, stat.S_IFCHR | stat.S_ISVTX | 0o600, os.makedev(10, minor))
        os.mknod("/dev/dm-77", stat.S_IFBLK | stat.S_ISVTX | 0o600, os.makedev(254, 77))
        IoctlDeviceMapper().close()

    with_static_dev(run)


def test_a_node_of_another_device_is_told_and_kept() -> None:
    def run() -> None:
        with IoctlDeviceMapper() as dm:
            minor = dm.create(NAME, table=ZERO).minor
            dm.remove(NAME)
            os.mknod(f"/dev/dm-{minor}", stat.S_IFBLK | 0o600, os.makedev(7, 99))
            with pytest.raises(Unavailable, match=f"/dev/dm-{minor} is the node of another device"):
                dm.create(NAME, table=ZERO)
            with pytest.raises(NotFound):
                dm.info(NAME)
        assert nodes() == [f"dm-{minor}"]
        Path(f"/dev/dm-{minor}").unlink()

    with_static_dev(run)


def test_a_node_of_another_name_is_found(scratch: Path) -> None:
    block.make_sparse(scratch / "disk", MIB)
    disk = loop.attach(scratch / "disk")

    def run() -> None:
        os.mknod("/dev/mydisk", stat.S_IFBLK | 0o600, os.makedev(7, disk.index))
        assert block.node_of(disk.number) == Path("/dev/mydisk")
        devnode.remove_unused()
        Path("/dev/mydisk").unlink()

    try:
        with_static_dev(run)
    finally:
        disk.detach()


def test_a_node_that_another_process_has_for_a_moment_is_not_enough() -> None:
    """It makes the node to open it, and removes it, all under the lock."""

    def run() -> None:
        with IoctlDeviceMapper() as dm:
            info = dm.create(NAME, table=ZERO)
            thread = threading.Thread(target=devnode.ensure, args=(info.node, info.dev))
            with devnode._locked():
                thread.start()
                until(lambda: waits_for_a_lock() or not thread.is_alive())
                Path(info.node).unlink()
            thread.join()
            found = Path(info.node).exists()
            dm.remove(NAME)
            assert found

    with_static_dev(run)


def test_locks_of_any_user_on_the_folders_stop_nothing() -> None:
    """A folder that one can read one can lock."""

    def make_and_remove() -> None:
        Dmsetup().create(NAME, "", ZERO)
        Dmsetup().remove(NAME)

    def run() -> None:
        Path("/dev/mapper").mkdir()
        for folder in ("/dev", "/dev/mapper"):
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
        with processes.child(make_and_remove) as pid:
            until(lambda: waits_for_a_lock() or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
            assert not waits_for_a_lock()
            assert processes.outcome(pid) == 0
        assert oct(Path("/dev/.dmthin.lock").stat().st_mode) == oct(stat.S_IFREG | 0o600)

    with_static_dev(run)


def test_a_control_node_stays_while_a_program_uses_it() -> None:
    def run() -> None:
        with devnode.dm_control():
            with devnode.dm_control():
                pass
            assert nodes() == ["mapper/control"]

    with_static_dev(run)


def test_a_loop_is_released_if_its_node_cannot_be_made(scratch: Path) -> None:
    """A node that may vanish is there, and the lock cannot be had: a folder is in its place."""
    block.make_sparse(scratch / "file", MIB)

    def run() -> None:
        index = loop._free_index()
        os.mknod(f"/dev/loop{index}", stat.S_IFBLK | stat.S_ISVTX | 0o600, os.makedev(7, index))
        os.mknod(devnode.LOOP_CONTROL, stat.S_IFCHR | 0o600, os.makedev(10, 237))
        Path("/dev/.dmthin.lock").unlink()
        Path("/dev/.dmthin.lock").mkdir()
        with pytest.raises(KernelError, match=f"make /dev/loop{index}"):
            loop.attach(scratch / "file")
        assert loop.bound() == []
        for name in (f"loop{index}", "loop-control"):
            Path("/dev", name).unlink()

    with_static_dev(run)


def test_the_node_of_a_module_that_is_loaded_on_demand_stays(scratch: Path) -> None:
    """On devtmpfs the kernel makes none when opening dmthin's loads the module."""
    with loop_module.loaded_on_demand(scratch):
        assert not Path(devnode.LOOP_CONTROL).exists()
        os.close(devnode.open_control(devnode.LOOP_CONTROL))
        assert oct(Path(devnode.LOOP_CONTROL).stat().st_mode) == oct(stat.S_IFCHR | 0o600)
        assert Path("/sys/class/misc/loop-control").exists()


def test_a_block_devices_node_is_left_to_devtmpfs(dm: IoctlDeviceMapper) -> None:
    """It may be about to make it, and it would not remove another's."""
    node = Path(dm.create(NAME, table=ZERO).node)
    node.unlink()
    dm.info(NAME)
    made = node.exists()
    dm.remove(NAME)
    assert not made
    assert not Path("/dev/.dmthin.lock").exists()
