"""The contracts of `DeviceBuilder`, over the ioctl ABI and over dmsetup, and of `DeviceMapper`, over the ioctl ABI.

Where an answer can be had from the program dmsetup too, it is compared with that.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    KernelInvalid,
    NeedsRepair,
    NotFound,
    NotPermitted,
    TimeLimit,
    Unavailable,
)
from dmthin.kernel import block, mount
from dmthin.kernel.devicemapper import DeviceBuilder, DeviceInfo, DeviceMapper, DeviceName, Target
from dmthin.kernel.dmioctl import EventPoll, IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.kernel.thin import PoolTable, ThinTable
from dmthin.units import MIB, SECTOR
from enginelib.waiting import PATIENCE
from tests.support import processes, rigs
from tests.support.processes import program
from tests.support.rigs import PREFIX, Rig

A, B = f"{PREFIX}a", f"{PREFIX}b"
ERROR = Target(0, 128, "error", "")
LONGER = Target(0, 256, "error", "")

_BLKROGET = 0x125E
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@pytest.fixture(params=["ioctl", "dmsetup"])
def builder(request: pytest.FixtureRequest, dm: IoctlDeviceMapper) -> DeviceBuilder:
    """Each implementation in turn; `dm` is the witness beside it."""
    return dm if request.param == "ioctl" else Dmsetup()


@pytest.fixture(autouse=True)
def _tidy(dm: IoctlDeviceMapper) -> Iterator[None]:
    yield
    for device in sorted(dm.devices(), key=lambda device: device.dev, reverse=True):
        if device.name.startswith(PREFIX):
            dm.remove(device.name, deferred=True)


@contextmanager
def refused(kind: type[DmthinError], match: str = ".") -> Iterator[None]:
    """Exactly this error, no other and no more special one."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert caught.type is kind


def exists(dm: DeviceMapper, name: str) -> bool:
    return any(device.name == name for device in dm.devices())


def dmsetup(*words: str) -> list[str]:
    """The lines that the program dmsetup prints, without blanks at their ends."""
    return [line.rstrip() for line in program("dmsetup", *words).stdout.splitlines()]


# --- versions -------------------------------------------------------------------------------------------------------


def test_version_of_the_interface(dm: IoctlDeviceMapper) -> None:
    version = dm.version()
    assert dmsetup("version")[1].split() == ["Driver", "version:", str(version)]
    assert (version.major, version.minor >= 37) == (4, True)


def test_versions_of_the_targets(dm: IoctlDeviceMapper) -> None:
    versions = dm.target_versions()
    assert {line.split()[0]: line.split()[1] for line in dmsetup("targets")} == {
        name: f"v{version}" for name, version in versions.items()
    }
    assert {"thin-pool", "thin", "linear", "error"} <= set(versions)
    assert versions["thin-pool"].major == 1


# --- making ---------------------------------------------------------------------------------------------------------


def test_create_without_a_table(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A, "RIG-a")
    assert made == DeviceInfo(
        name=A,
        uuid="RIG-a",
        dev=made.dev,
        open_count=0,
        event_number=0,
        target_count=0,
        suspended=False,
        read_only=False,
        live_table=False,
        inactive_table=False,
        deferred_remove=False,
    )
    assert dm.info(A) == made
    assert dm.table(A) == []
    assert dm.status(A) == []


def test_the_node_comes_with_the_first_table(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A)
    assert not Path(made.node).exists()
    dm.load(A, [ERROR])
    assert Path(made.node).stat().st_rdev == made.dev


def test_create_with_a_table_makes_it_live(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    made = builder.create(A, "", [ERROR, Target(128, 128, "error", "")])
    assert (made.live_table, made.inactive_table, made.target_count, made.uuid) == (True, False, 2, "")
    assert block.size(Path(made.node)) == 256 * SECTOR


def test_create_read_only(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A, table=[ERROR], read_only=True)
    assert made.read_only
    with block.opened(Path(made.node)) as fd:
        assert struct.unpack("=i", fcntl.ioctl(fd, _BLKROGET, bytes(4))) == (1,)


def test_a_taken_name_or_uuid(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    builder.create(A, "RIG-a", [ERROR])
    with refused(AlreadyExists, match=A):
        builder.create(A, "", [ERROR])
    with refused(AlreadyExists, match=B):
        builder.create(B, "RIG-a", [ERROR])
    assert not exists(dm, B)


@pytest.mark.parametrize("target", ["no-such-target", "linear"])
def test_a_refused_table_leaves_no_device(builder: DeviceBuilder, dm: IoctlDeviceMapper, target: str) -> None:
    with refused(KernelInvalid, match=A):
        builder.create(A, "", [Target(0, 128, target, "one-word")])
    assert not exists(dm, A)


def test_a_table_that_fails_at_its_resume_leaves_no_device(
    builder: DeviceBuilder, dm: IoctlDeviceMapper, scratch: Path
) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        smaller = PoolTable(rig.table().size // 2, rig.metadata.number, rig.data.number, rigs.BLOCK, 0)
        rig.down()
        with refused(KernelInvalid):
            builder.create(A, "", [smaller.target()])
        assert not exists(dm, A)
        rig.up()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_loaded_table_waits_for_resume(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    builder.create(A, "", [ERROR])
    loaded = builder.load(A, [LONGER])
    assert (loaded.live_table, loaded.inactive_table) == (True, True)
    assert dm.table(A) == [ERROR]
    live = builder.resume(A)
    assert (live.live_table, live.inactive_table) == (True, False)
    assert dm.table(A) == [LONGER]


def test_a_loaded_table_can_be_dropped(dm: IoctlDeviceMapper) -> None:
    dm.create(A)
    assert dm.load(A, [ERROR]).inactive_table
    assert not dm.clear(A).inactive_table
    assert not dm.clear(A).inactive_table
    assert not dm.resume(A).live_table


def test_a_refused_load_keeps_the_live_table(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    builder.create(A, "", [ERROR])
    with refused(KernelInvalid, match=A):
        builder.load(A, [Target(0, 128, "linear", "one-word")])
    with refused(Unavailable, match="a device below it is not there"):
        builder.load(A, [Target(0, 128, "linear", "/dev/nothing-here 0")])
    info = dm.info(A)
    assert (info.live_table, info.inactive_table, info.suspended) == (True, False, False)


def test_a_table_loaded_read_only(dm: IoctlDeviceMapper) -> None:
    dm.create(A)
    dm.load(A, [ERROR], read_only=True)
    assert dm.resume(A).read_only


def test_a_table_and_a_status_longer_than_the_first_buffer(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[Target(0, 8000, "error", "")])
    below = dm.info(A).number
    table = [Target(8 * n, 8, "linear", f"{below} {8 * (999 - n)}") for n in range(1000)]
    made = builder.create(B, "", table)
    assert made.target_count == 1000
    assert dm.table(B) == table
    assert dm.status(B) == [Target(line.start, 8, "linear", "") for line in table]


# --- suspend and resume ---------------------------------------------------------------------------------------------


def test_suspend_and_resume(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    assert dm.suspend(A).suspended
    assert dm.suspend(A).suspended
    assert dm.info(A).suspended
    assert not builder.resume(A).suspended
    assert not builder.resume(A).suspended


@pytest.mark.parametrize("lock_fs", [True, False])
def test_suspend_freezes_the_file_system_or_not(dm: IoctlDeviceMapper, scratch: Path, lock_fs: bool) -> None:
    with rigs.disk(dm, scratch / "disk", 16 * MIB) as disk:
        program("mkfs.ext4", "-q", str(disk.node))
        mount.mount(str(disk.node), _made(scratch / "mnt"), "ext4", "ro")
        try:
            dm.suspend(disk.name, lock_fs=lock_fs)
            assert _is_frozen(scratch / "mnt") == lock_fs
            dm.resume(disk.name)
            assert not _is_frozen(scratch / "mnt")
        finally:
            dm.resume(disk.name)
            mount.unmount(scratch / "mnt")


def _is_frozen(folder: Path) -> bool:
    """FIFREEZE fails with EBUSY where somebody has frozen it before; a read-only one has nothing to write."""
    with block.opened(folder) as fd:
        try:
            fcntl.ioctl(fd, _FIFREEZE, 0)
        except OSError:
            return True
        fcntl.ioctl(fd, _FITHAW, 0)
        return False


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- messages -------------------------------------------------------------------------------------------------------


def test_a_message_and_its_answer(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    assert dm.message(A, "@stats_create - /2") == "0"
    assert dm.message(A, "@stats_list") == "0: 0+128 64 - -"
    assert dm.message(A, "@stats_delete 0") == ""


def test_a_message_that_nobody_hears(dm: IoctlDeviceMapper) -> None:
    """Where there is no live table Linux 6.1 answers +2, which is no error, and 6.12 and 7.2 say EINVAL."""
    dm.create(A)
    with refused(NotFound, match="no live table"):
        dm.message(A, "create_thin 0")
    dm.load(A, [ERROR])
    with refused(NotFound, match="no live table"):
        dm.message(A, "create_thin 0")


def test_a_message_to_a_sector_beyond_the_end(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    with refused(KernelInvalid):
        dm.message(A, "hello", sector=128)


# --- what is there --------------------------------------------------------------------------------------------------


def test_info_counts_opens_and_names_both_tables(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A, table=[ERROR])
    with block.opened(Path(made.node)), block.opened(Path(made.node)):
        dm.load(A, [LONGER])
        dm.suspend(A)
        info = dm.info(A)
    assert (info.open_count, info.live_table, info.inactive_table, info.suspended) == (2, True, True, True)
    assert dm.info(A).open_count == 0


def test_a_list_of_devices_longer_than_the_first_buffer(dm: IoctlDeviceMapper) -> None:
    assert dm.devices() == []
    names = [f"{PREFIX}{number}-".ljust(127, "x") for number in range(40)]
    made = [dm.create(name) for name in names]
    assert sorted(dm.devices(), key=lambda device: device.name) == sorted(
        (DeviceName(info.name, info.dev) for info in made), key=lambda device: device.name
    )


# --- names ----------------------------------------------------------------------------------------------------------


ODD = ("", ".", "..", "control", "a b", "a/b", "a$", "ä", "a\\x20b", "-a", "a\n", "x" * 128)


def test_names_that_libdm_would_write_otherwise_are_refused(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    actions: list[Callable[[str], object]] = [
        dm.create,
        lambda name: dm.create(B, uuid=f"{name} "),
        lambda name: dm.rename(A, name),
        dm.info,
        dm.suspend,
        dm.remove,
    ]
    refuse_odd_names(dm, actions)


def test_a_builder_refuses_those_names_too(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    actions: list[Callable[[str], object]] = [
        lambda name: builder.create(name, "", [ERROR]),
        lambda name: builder.create(B, f"{name} ", [ERROR]),
        lambda name: builder.load(name, [ERROR]),
        builder.resume,
        builder.remove,
    ]
    refuse_odd_names(dm, actions)


def refuse_odd_names(dm: IoctlDeviceMapper, actions: list[Callable[[str], object]]) -> None:
    for name in ODD:
        for action in actions:
            with refused(InvalidValue):
                action(name)
    assert [device.name for device in dm.devices()] == [A]


def test_the_longest_name_and_every_character(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    name = f"{PREFIX}#+-.:=@_09azAZ".ljust(127, "x")
    made = builder.create(name, "U" * 128, [ERROR])
    assert dm.info(name) == made
    assert (made.name, made.uuid) == (name, "U" * 128)


def test_another_programs_odd_names_are_listed_as_the_kernel_has_them(dm: IoctlDeviceMapper) -> None:
    program("dmsetup", "--manglename", "none", "create", "a (254:0) b", "--notable")
    program("dmsetup", "create", "c d", "--notable")
    try:
        assert sorted(device.name for device in dm.devices()) == ["a (254:0) b", "c\\x20d"]
    finally:
        program("dmsetup", "--manglename", "none", "remove", "a (254:0) b")
        program("dmsetup", "remove", "c d")


def test_rename(dm: IoctlDeviceMapper) -> None:
    dm.create(A, "RIG-a", [ERROR])
    dm.create(B)
    with refused(AlreadyExists):
        dm.rename(A, B)
    with refused(AlreadyExists):
        dm.rename(A, A)
    dm.remove(B)
    dm.rename(A, B)
    assert [device.name for device in dm.devices()] == [B]
    assert (dm.info(B).uuid, dm.info(B).event_number) == ("RIG-a", 1)


# --- removal --------------------------------------------------------------------------------------------------------


def test_remove(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    builder.create(A, "", [ERROR])
    assert builder.remove(A) is True
    assert not exists(dm, A)


def test_an_open_device_stays(builder: DeviceBuilder, dm: IoctlDeviceMapper) -> None:
    made = builder.create(A, "", [ERROR])
    with block.opened(Path(made.node)):
        with refused(InUse, match=A):
            builder.remove(A)
        assert not dm.info(A).deferred_remove
    assert builder.remove(A)


def _await_removal(dm: DeviceMapper, name: str) -> None:
    """The kernel removes the device a moment after its last user's end."""
    with EventPoll() as events:
        events.arm()
        while exists(dm, name):
            assert events.poll(PATIENCE)
            events.arm()


def test_deferred_removal_waits_for_the_last_user(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A, table=[ERROR])
    with block.opened(Path(made.node)):
        with block.opened(Path(made.node)):
            assert dm.remove(A, deferred=True) is False
        assert dm.info(A).deferred_remove
    _await_removal(dm, A)


def test_deferred_removal_of_a_device_that_nobody_has_open(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    assert dm.remove(A, deferred=True) is True
    assert not exists(dm, A)


def test_deferred_removal_can_be_cancelled(dm: IoctlDeviceMapper) -> None:
    made = dm.create(A, table=[ERROR])
    with block.opened(Path(made.node)):
        dm.remove(A, deferred=True)
        dm.cancel_deferred_remove(A)
        assert not dm.info(A).deferred_remove
    assert exists(dm, A)


# --- events ---------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_for_an_event_that_has_been(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    dm.rename(A, B)
    assert dm.wait(B, 0, timeout=PATIENCE) == 1


def test_wait_for_the_pool_to_reach_its_low_water_mark(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * rigs.BLOCK, low_water=4) as rig:
        node = rig.thin(0)
        for number in range(12):
            rigs.write_block(node, number, rigs.pattern(1, number))
        before = dm.info(rig.pool.name).event_number
        with processes.child(lambda: rigs.write_block(node, 12, rigs.pattern(1, 12))):
            assert dm.wait(rig.pool.name, before, timeout=PATIENCE) > before


def test_wait_has_a_time_limit(dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    with refused(TimeLimit, match=A):
        dm.wait(A, 0, timeout=0.3)


def test_poll_sees_what_comes_between_arming_and_reading(dm: IoctlDeviceMapper) -> None:
    with EventPoll() as events:
        events.arm()
        assert not events.poll(0)
        dm.create(A, table=[ERROR])
        assert events.poll(0)
        assert events.poll(0), "an event stays until the next arming"
        events.arm()
        assert not events.poll(0)
        dm.load(A, [LONGER])
        dm.resume(A)
        assert events.poll(0), "a table that goes live is an event"
        events.arm()
        dm.remove(A)
        assert events.poll(0)


def test_poll_wakes_a_waiting_process(dm: IoctlDeviceMapper) -> None:
    with EventPoll() as events:
        events.arm()
        with processes.child(lambda: IoctlDeviceMapper().create(A)):
            assert events.poll(PATIENCE)


def test_two_polls_each_see_the_event(dm: IoctlDeviceMapper) -> None:
    with EventPoll() as one, EventPoll() as two:
        one.arm()
        two.arm()
        dm.create(A)
        one.arm()
        assert not one.poll(0)
        assert two.poll(0)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_no_such_device(dm: IoctlDeviceMapper) -> None:
    actions: list[Callable[[], object]] = [
        lambda: dm.clear(A),
        lambda: dm.suspend(A),
        lambda: dm.message(A, "hello"),
        lambda: dm.status(A),
        lambda: dm.table(A),
        lambda: dm.info(A),
        lambda: dm.rename(A, B),
        lambda: dm.remove(A, deferred=True),
        lambda: dm.cancel_deferred_remove(A),
        lambda: dm.wait(A, 0, 60),
    ]
    for action in actions:
        with refused(NotFound, match=A):
            action()


def test_no_such_device_for_a_builder(builder: DeviceBuilder) -> None:
    actions: list[Callable[[], object]] = [
        lambda: builder.load(A, [ERROR]),
        lambda: builder.resume(A),
        lambda: builder.remove(A),
    ]
    for action in actions:
        with refused(NotFound, match=A):
            action()


def test_errors_of_a_pool(builder: DeviceBuilder, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        name = rig.pool.name
        assert dm.message(name, "create_thin 0") == ""
        with refused(AlreadyExists, match="create_thin 0"):  # EEXIST
            dm.message(name, "create_thin 0")
        with refused(NotFound, match="delete 7"):  # ENODATA
            dm.message(name, "delete 7")
        with refused(NotFound):
            dm.message(name, "create_snap 1 7")
        with refused(KernelInvalid):  # EINVAL
            dm.message(name, "set_transaction_id 5 6")
        with refused(NotFound):  # ENODATA
            builder.create(A, "", [ThinTable(MIB, rig.number(), 7).target()])
        with refused(InUse):  # EBUSY
            builder.create(A, "", [PoolTable(MIB, rig.metadata.number, rig.data.number, rigs.BLOCK, 0).target()])
        assert not exists(dm, A)
        rig.activate(0)
        with refused(InUse):  # EBUSY
            dm.message(name, "delete 0")
        with refused(InUse):
            builder.remove(name)


def test_a_message_to_a_pool_that_cannot_change(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        rig.pool.reload(rig.table("read_only"))
        with refused(NeedsRepair):  # EOPNOTSUPP
            dm.message(rig.pool.name, "create_thin 1")
        rig.pool.reload(rig.table())


def test_an_error_of_the_layer_below(builder: DeviceBuilder, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.down()
        rig.metadata.break_()
        with pytest.raises(KernelError) as caught:
            builder.create(A, "", [rig.table().target()])
        assert (caught.type, caught.value.errno) == (KernelError, 5)
        assert not exists(dm, A)
        rig.metadata.heal()
        rig.up()


@pytest.mark.parametrize("kind", [IoctlDeviceMapper, Dmsetup])
def test_without_rights(kind: Callable[[], DeviceBuilder]) -> None:
    def ask_as_nobody() -> None:
        os.setgroups([])
        os.setuid(65534)
        with suppress(NotPermitted):
            kind().remove(A)
            os._exit(1)

    with processes.child(ask_as_nobody) as pid:
        assert processes.outcome(pid) == 0


# --- thin targets ---------------------------------------------------------------------------------------------------


def test_lines_of_a_pool_and_a_volume_are_those_of_dmsetup(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, features=("skip_block_zeroing", "error_if_no_space"), low_water=9) as rig:
        rig.volume(3, MIB)
        rigs.write_block(rig.thin(3), 5, rigs.pattern(1, 5))
        pool, volume = rig.pool.name, rig.volume(3, MIB).name
        assert lines(dm.status(pool, flush=True)) == dmsetup("status", pool)
        assert lines(dm.status(pool)) == dmsetup("status", "--noflush", pool)
        assert lines(dm.status(volume)) == dmsetup("status", volume) == ["0 32768 thin 128 767"]
        assert lines(dm.table(pool)) == dmsetup("table", pool)
        assert lines(dm.table(volume)) == dmsetup("table", volume)
        assert PoolTable.parse(dm.table(pool)) == rig.table()
        assert ThinTable.parse(dm.table(volume)) == ThinTable(16 * MIB, rig.number(), 3)


def lines(targets: list[Target]) -> list[str]:
    return [str(target) for target in targets]


def test_status_commits_only_when_it_is_asked_to(dm: IoctlDeviceMapper, scratch: Path) -> None:
    """The pool also commits by itself each second, so one of many a status must be seen that has committed nothing."""
    with rigs.pool(dm, scratch) as rig:
        node = rig.thin(0)
        dm.message(rig.pool.name, "set_transaction_id 0 1")

        def commits(number: int, *, flush: bool) -> bool:
            dm.status(rig.pool.name, flush=True)
            committed = _mapping_root(rig)
            rigs.write_block(node, number, rigs.pattern(1, number))
            dm.status(rig.pool.name, flush=flush)
            return _mapping_root(rig) != committed

        assert not all(commits(number, flush=False) for number in range(50))
        assert all(commits(number, flush=True) for number in range(50, 60))


def _mapping_root(rig: Rig) -> int:
    """The root of the mapping tree on the disk, which moves with every commit of a change."""
    (root,) = struct.unpack_from("<Q", rigs.read_block(rig.metadata.node, 0), 320)
    return int(root)
