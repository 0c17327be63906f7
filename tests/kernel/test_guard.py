"""The guard: it suspends a volume and resumes it, whichever process dies, and gives up one that cannot be suspended."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dmthin.errors import DmthinError, KernelError, NoDataSpace, TimeLimit
from dmthin.kernel import mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode
from dmthin.pool import guard
from dmthin.pool.guard import Guard
from dmthin.units import MIB
from enginelib.waiting import PATIENCE, until
from tests.support import processes, rigs
from tests.support.processes import program
from tests.support.rigs import BLOCK, active

_TIMEOUT = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that is slow to start or to end, on a machine that has other work, is waited for."""
    for limit in ("_START_SECONDS", "_SUSPEND_SECONDS", "_END_SECONDS"):
        monkeypatch.setattr(guard, limit, PATIENCE)


@pytest.fixture
def no_space_timeout() -> Iterator[Callable[[int], object]]:
    """Set after how many seconds a full pool fails what it has queued; put back afterwards."""
    before = _TIMEOUT.read_text()
    yield lambda seconds: _TIMEOUT.write_text(str(seconds))
    _TIMEOUT.write_text(before)


def test_a_guard_suspends_and_resumes(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.thin(0)
        name = rig.volume(0, MIB).name
        with Guard(name):
            assert dm.info(name).suspended
        assert active(dm.info(name))
        with suppress(RuntimeError), Guard(name):
            raise RuntimeError
        assert active(dm.info(name))


def test_a_guard_of_nothing(dm: IoctlDeviceMapper) -> None:
    with pytest.raises(KernelError, match="no such device"), Guard("rig-nothing"):
        pass


def test_a_volume_is_resumed_when_its_manager_is_killed(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node, name = rig.thin(0), rig.volume(0, MIB).name

        def suspend_and_stop() -> None:
            with Guard(name):
                os.kill(os.getpid(), signal.SIGSTOP)

        with processes.child(suspend_and_stop) as pid:
            os.waitpid(pid, os.WUNTRACED)
            assert dm.info(name).suspended
            os.kill(pid, signal.SIGKILL)
            assert processes.outcome(pid) == -signal.SIGKILL
        rigs.write_block(node, 0, rigs.pattern(1, 0))
        assert active(dm.info(name))


def test_a_volume_is_resumed_when_its_guard_is_killed(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.thin(0)
        name = rig.volume(0, MIB).name
        with Guard(name) as held:
            os.kill(held._pid, signal.SIGKILL)
        assert active(dm.info(name))


def test_guards_end_in_any_order(dm: IoctlDeviceMapper, scratch: Path) -> None:
    """A guard that is forked while another is held must not keep that one alive."""
    with rigs.pool(dm, scratch) as rig:
        names = [rig.volume(number, MIB).name for number in range(3)]
        for number in range(3):
            rig.thin(number)
        guards = [ExitStack() for _ in names]
        for stack, name in zip(guards, names, strict=True):
            stack.enter_context(Guard(name))
        for stack, name in zip(guards, names, strict=True):
            assert dm.info(name).suspended
            stack.close()
            assert active(dm.info(name))


@pytest.mark.parametrize("hung", [1, 3])
def test_a_guard_that_hangs_before_it_begins_is_replaced(
    dm: IoctlDeviceMapper, scratch: Path, monkeypatch: pytest.MonkeyPatch, hung: int
) -> None:
    """As a fork of many threads may, in a lock that another of them had; and no signal but one reaches it."""
    begin, fork = guard._guard, Guard._fork
    starts: list[Guard] = []

    def hang(*arguments: Any) -> NoReturn:
        while len(starts) <= hung:
            signal.pause()
        begin(*arguments)

    def count(held: Guard) -> int:
        starts.append(held)
        monkeypatch.setattr(guard, "_START_SECONDS", 0.2 if len(starts) <= hung else PATIENCE)
        return fork(held)

    monkeypatch.setattr(guard, "_guard", hang)
    monkeypatch.setattr(Guard, "_fork", count)
    with rigs.pool(dm, scratch) as rig:
        rig.thin(0)
        name = rig.volume(0, MIB).name
        before = os.listdir("/proc/self/fd")
        if hung < guard._STARTS:
            with Guard(name):
                assert dm.info(name).suspended
        else:
            with pytest.raises(TimeLimit, match="does not start"), Guard(name):
                pass
        assert active(dm.info(name))
        assert os.listdir("/proc/self/fd") == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def test_no_guard_process_and_no_descriptor_is_left(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.thin(0)
        before = os.listdir("/proc/self/fd")
        with Guard(rig.volume(0, MIB).name):
            pass
        with suppress(DmthinError), Guard("rig-nothing"):
            pass
        assert os.listdir("/proc/self/fd") == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def test_no_quiescing_on_a_full_pool(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        node, volume = rig.thin(0), rig.volume(0, 16 * MIB)
        for number in range(16):
            rigs.write_block(node, number, rigs.pattern(1, number))
        with rigs.writing(node, 16) as pid:
            rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            with pytest.raises(NoDataSpace), volume.quiesced():
                pass
            rig.data.grow(32 * BLOCK)
            rig.pool.reload(rig.table())
            assert processes.outcome(pid) == 0


def test_a_guard_gives_up_on_a_volume_that_cannot_be_suspended(
    dm: IoctlDeviceMapper, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has filled up just before the suspend: it waits for queued writes, until the guard is killed."""
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        node, name = rig.thin(0), rig.volume(0, MIB).name
        for number in range(16):
            rigs.write_block(node, number, rigs.pattern(1, number))
        with rigs.writing(node, 16) as pid:
            rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            with monkeypatch.context() as patched, pytest.raises(TimeLimit, match=name):
                patched.setattr(guard, "_SUSPEND_SECONDS", 0.3)
                with Guard(name):
                    pass
            until(lambda: active(dm.info(name)))
            assert rigs.read_block(node, 3) == rigs.pattern(1, 3)
            rig.data.grow(32 * BLOCK)
            rig.pool.reload(rig.table())
            assert processes.outcome(pid) == 0
        assert rigs.read_block(node, 16) == rigs.pattern(9, 16)
        with Guard(name):
            assert dm.info(name).suspended


def test_a_guard_gives_up_on_a_file_system_that_cannot_be_frozen(
    dm: IoctlDeviceMapper,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_space_timeout: Callable[[int], object],
) -> None:
    """The freeze itself fills the pool. That wait takes no signal: it ends when the kernel fails the writes."""
    monkeypatch.setattr(guard, "_END_SECONDS", 0.5)
    no_space_timeout(2)
    with rigs.pool(dm, scratch, data_size=24 * MIB) as rig:
        node, name = rig.thin(0, 64 * MIB), rig.volume(0, MIB).name
        with mounted_ext4(node, scratch / "mnt") as root:
            (root / "kept").write_text("kept")
            os.sync()
            (root / "big").write_bytes(random.Random(1).randbytes(32 * MIB))
            with monkeypatch.context() as patched, pytest.raises(TimeLimit, match=name):
                patched.setattr(guard, "_SUSPEND_SECONDS", 0.3)
                with Guard(name):
                    pass
            until(lambda: active(dm.info(name)))
            assert rig.pool.status().mode is PoolMode.OUT_OF_DATA_SPACE
            assert (root / "kept").read_text() == "kept"
            rig.data.grow(64 * MIB)
            rig.pool.reload(rig.table())
            rigs.await_mode(rig, PoolMode.READ_WRITE)
        program("fsck.ext4", "-fy", str(node), ok=(0, 1))


@contextmanager
def mounted_ext4(node: Path, place: Path) -> Iterator[Path]:
    program("mkfs.ext4", "-q", "-E", "nodiscard", str(node))
    place.mkdir()
    mount.mount(str(node), place, "ext4")
    try:
        yield place
    finally:
        mount.unmount(place)
