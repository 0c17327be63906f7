"""The contract of `DeviceMapper`, over the ioctl ABI and over dmsetup: the same answers, the same errors."""

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
from dmthin.kernel import block, mount, process
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper, DeviceName, Target
from dmthin.kernel.dmioctl import EventPoll, IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.kernel.thin import PoolTable, ThinTable
from dmthin.units import MIB, SECTOR
from tests.support import processes, rigs
from tests.support.rigs import PREFIX, Rig

A, B = f"{PREFIX}a", f"{PREFIX}b"
ERROR = Target(0, 128, "error", "")
LONGER = Target(0, 256, "error", "")

_BLKROGET = 0x125E
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@pytest.fixture(params=["ioctl", "dmsetup"])
def mapper(request: pytest.FixtureRequest, dm: IoctlDeviceMapper) -> DeviceMapper:
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


# --- versions -------------------------------------------------------------------------------------------------------


def test_version_of_the_interface(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    version = mapper.version()
    assert version == dm.version()
    assert (version.major, version.minor >= 37) == (4, True)


def test_versions_of_the_targets(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    versions = mapper.target_versions()
    assert versions == dm.target_versions()
    assert {"thin-pool", "thin", "linear", "error"} <= set(versions)
    assert versions["thin-pool"].major == 1


# --- making ---------------------------------------------------------------------------------------------------------


def test_create_without_a_table(mapper: DeviceMapper) -> None:
    made = mapper.create(A, "RIG-a")
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
    assert mapper.info(A) == made
    assert mapper.table(A) == []
    assert mapper.status(A) == []


def test_the_node_comes_with_the_first_table(mapper: DeviceMapper) -> None:
    made = mapper.create(A)
    assert not Path(made.node).exists()
    mapper.load(A, [ERROR])
    assert Path(made.node).stat().st_rdev == made.dev


def test_create_with_a_table_makes_it_live(mapper: DeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR, Target(128, 128, "error", "")])
    assert (made.live_table, made.inactive_table, made.target_count, made.uuid) == (True, False, 2, "")
    assert block.size(Path(made.node)) == 256 * SECTOR


def test_create_read_only(mapper: DeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR], read_only=True)
    assert made.read_only
    with block.opened(Path(made.node)) as fd:
        assert struct.unpack("=i", fcntl.ioctl(fd, _BLKROGET, bytes(4))) == (1,)


def test_a_taken_name_or_uuid(mapper: DeviceMapper) -> None:
    mapper.create(A, "RIG-a")
    with refused(AlreadyExists, match=A):
        mapper.create(A)
    with refused(AlreadyExists, match=B):
        mapper.create(B, "RIG-a")
    assert not exists(mapper, B)


@pytest.mark.parametrize("target", ["no-such-target", "linear"])
def test_a_refused_table_leaves_no_device(mapper: DeviceMapper, target: str) -> None:
    with refused(KernelInvalid, match=A):
        mapper.create(A, table=[Target(0, 128, target, "one-word")])
    assert not exists(mapper, A)


def test_a_table_that_fails_at_its_resume_leaves_no_device(
    mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path
) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        smaller = PoolTable(rig.table().size // 2, rig.metadata.number, rig.data.number, rigs.BLOCK, 0)
        rig.down()
        with refused(KernelInvalid):
            mapper.create(A, table=[smaller.target()])
        assert not exists(mapper, A)
        rig.up()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_loaded_table_waits_for_resume(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    loaded = mapper.load(A, [LONGER])
    assert (loaded.live_table, loaded.inactive_table) == (True, True)
    assert mapper.table(A) == [ERROR]
    live = mapper.resume(A)
    assert (live.live_table, live.inactive_table) == (True, False)
    assert mapper.table(A) == [LONGER]


def test_a_loaded_table_can_be_dropped(mapper: DeviceMapper) -> None:
    mapper.create(A)
    assert mapper.load(A, [ERROR]).inactive_table
    assert not mapper.clear(A).inactive_table
    assert not mapper.clear(A).inactive_table
    assert not mapper.resume(A).live_table


def test_a_refused_load_keeps_the_live_table(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    with refused(KernelInvalid, match=A):
        mapper.load(A, [Target(0, 128, "linear", "one-word")])
    with refused(Unavailable, match="a device below it is not there"):
        mapper.load(A, [Target(0, 128, "linear", "/dev/nothing-here 0")])
    info = mapper.info(A)
    assert (info.live_table, info.inactive_table, info.suspended) == (True, False, False)


def test_a_table_loaded_read_only(mapper: DeviceMapper) -> None:
    mapper.create(A)
    mapper.load(A, [ERROR], read_only=True)
    assert mapper.resume(A).read_only


def test_a_table_and_a_status_longer_than_the_first_buffer(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[Target(0, 8000, "error", "")])
    below = dm.info(A).number
    table = [Target(8 * n, 8, "linear", f"{below} {8 * (999 - n)}") for n in range(1000)]
    made = mapper.create(B, table=table)
    assert made.target_count == 1000
    assert mapper.table(B) == table
    assert mapper.status(B) == [Target(line.start, 8, "linear", "") for line in table]


# --- suspend and resume ---------------------------------------------------------------------------------------------


def test_suspend_and_resume(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    assert mapper.suspend(A).suspended
    assert mapper.suspend(A).suspended
    assert dm.info(A).suspended
    assert not mapper.resume(A).suspended
    assert not mapper.resume(A).suspended


@pytest.mark.parametrize("lock_fs", [True, False])
def test_suspend_freezes_the_file_system_or_not(
    mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path, lock_fs: bool
) -> None:
    with rigs.disk(dm, scratch / "disk", 16 * MIB) as disk:
        process.run("mkfs.ext4", "-q", str(disk.node))
        mount.mount(str(disk.node), _made(scratch / "mnt"), "ext4", "ro")
        try:
            mapper.suspend(disk.name, lock_fs=lock_fs)
            assert _is_frozen(scratch / "mnt") == lock_fs
            mapper.resume(disk.name)
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


def test_a_message_and_its_answer(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    assert mapper.message(A, "@stats_create - /2") == "0"
    assert mapper.message(A, "@stats_list") == "0: 0+128 64 - -"
    assert mapper.message(A, "@stats_delete 0") == ""


def test_a_message_that_nobody_hears(mapper: DeviceMapper) -> None:
    """The kernel answers +2, no error, where there is no live table."""
    mapper.create(A)
    with refused(NotFound, match="no live table"):
        mapper.message(A, "create_thin 0")
    mapper.load(A, [ERROR])
    with refused(NotFound, match="no live table"):
        mapper.message(A, "create_thin 0")


def test_a_message_to_a_sector_beyond_the_end(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    with refused(KernelInvalid):
        mapper.message(A, "hello", sector=128)


# --- what is there --------------------------------------------------------------------------------------------------


def test_info_counts_opens_and_names_both_tables(mapper: DeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR])
    with block.opened(Path(made.node)), block.opened(Path(made.node)):
        mapper.load(A, [LONGER])
        mapper.suspend(A)
        info = mapper.info(A)
    assert (info.open_count, info.live_table, info.inactive_table, info.suspended) == (2, True, True, True)
    assert mapper.info(A).open_count == 0


def test_a_list_of_devices_longer_than_the_first_buffer(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    assert mapper.devices() == []
    names = [f"{PREFIX}{number}-".ljust(127, "x") for number in range(40)]
    made = [dm.create(name) for name in names]
    assert sorted(mapper.devices(), key=lambda device: device.name) == sorted(
        (DeviceName(info.name, info.dev) for info in made), key=lambda device: device.name
    )


# --- names ----------------------------------------------------------------------------------------------------------


ODD = ("", ".", "..", "control", "a b", "a/b", "a$", "ä", "a\\x20b", "-a", "a\n", "x" * 128)


def test_names_that_libdm_would_write_otherwise_are_refused(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    dm.create(A, table=[ERROR])
    actions: list[Callable[[str], object]] = [
        mapper.create,
        lambda name: mapper.create(B, uuid=f"{name} "),
        lambda name: mapper.rename(A, name),
        mapper.info,
        mapper.suspend,
        mapper.remove,
    ]
    for name in ODD:
        for action in actions:
            with refused(InvalidValue):
                action(name)
    assert [device.name for device in dm.devices()] == [A]


def test_the_longest_name_and_every_character(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    name = f"{PREFIX}#+-.:=@_09azAZ".ljust(127, "x")
    made = mapper.create(name, uuid="U" * 128)
    assert dm.info(name) == made
    assert (made.name, made.uuid) == (name, "U" * 128)


def test_another_programs_odd_names_are_listed_as_the_kernel_has_them(mapper: DeviceMapper) -> None:
    process.run("dmsetup", "--manglename", "none", "create", "a (254:0) b", "--notable")
    process.run("dmsetup", "create", "c d", "--notable")
    try:
        assert sorted(device.name for device in mapper.devices()) == ["a (254:0) b", "c\\x20d"]
    finally:
        process.run("dmsetup", "--manglename", "none", "remove", "a (254:0) b")
        process.run("dmsetup", "remove", "c d")


def test_rename(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    dm.create(A, "RIG-a", [ERROR])
    dm.create(B)
    with refused(AlreadyExists):
        mapper.rename(A, B)
    with refused(AlreadyExists):
        mapper.rename(A, A)
    dm.remove(B)
    mapper.rename(A, B)
    assert [device.name for device in dm.devices()] == [B]
    assert (mapper.info(B).uuid, mapper.info(B).event_number) == ("RIG-a", 1)


# --- removal --------------------------------------------------------------------------------------------------------


def test_remove(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    assert mapper.remove(A) is True
    assert not exists(mapper, A)


def test_an_open_device_stays(mapper: DeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR])
    with block.opened(Path(made.node)):
        with refused(InUse, match=A):
            mapper.remove(A)
        assert not mapper.info(A).deferred_remove
    assert mapper.remove(A)


def _await_removal(dm: DeviceMapper, name: str) -> None:
    """The kernel removes the device a moment after its last user's end."""
    with EventPoll() as events:
        events.arm()
        while exists(dm, name):
            assert events.poll(60)
            events.arm()


def test_deferred_removal_waits_for_the_last_user(mapper: DeviceMapper, dm: IoctlDeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR])
    with block.opened(Path(made.node)):
        with block.opened(Path(made.node)):
            assert mapper.remove(A, deferred=True) is False
        assert mapper.info(A).deferred_remove
    _await_removal(dm, A)


def test_deferred_removal_of_a_device_that_nobody_has_open(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    assert mapper.remove(A, deferred=True) is True
    assert not exists(mapper, A)


def test_deferred_removal_can_be_cancelled(mapper: DeviceMapper) -> None:
    made = mapper.create(A, table=[ERROR])
    with block.opened(Path(made.node)):
        mapper.remove(A, deferred=True)
        mapper.cancel_deferred_remove(A)
        assert not mapper.info(A).deferred_remove
    assert exists(mapper, A)


# --- events ---------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_for_an_event_that_has_been(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    mapper.rename(A, B)
    assert mapper.wait(B, 0, timeout=60) == 1


def test_wait_for_the_pool_to_reach_its_low_water_mark(
    mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path
) -> None:
    with rigs.pool(dm, scratch, data_size=16 * rigs.BLOCK, low_water=4) as rig:
        node = rig.thin(0)
        for number in range(12):
            rigs.write_block(node, number, rigs.pattern(1, number))
        before = mapper.info(rig.pool.name).event_number
        with processes.child(lambda: rigs.write_block(node, 12, rigs.pattern(1, 12))):
            assert mapper.wait(rig.pool.name, before, timeout=60) > before


def test_wait_has_a_time_limit(mapper: DeviceMapper) -> None:
    mapper.create(A, table=[ERROR])
    with refused(TimeLimit, match=A):
        mapper.wait(A, 0, timeout=0.3)


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
            assert events.poll(60)


def test_two_polls_each_see_the_event(dm: IoctlDeviceMapper) -> None:
    with EventPoll() as one, EventPoll() as two:
        one.arm()
        two.arm()
        dm.create(A)
        one.arm()
        assert not one.poll(0)
        assert two.poll(0)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_no_such_device(mapper: DeviceMapper) -> None:
    actions: list[Callable[[], object]] = [
        lambda: mapper.load(A, [ERROR]),
        lambda: mapper.clear(A),
        lambda: mapper.suspend(A),
        lambda: mapper.resume(A),
        lambda: mapper.message(A, "hello"),
        lambda: mapper.status(A),
        lambda: mapper.table(A),
        lambda: mapper.info(A),
        lambda: mapper.rename(A, B),
        lambda: mapper.remove(A),
        lambda: mapper.remove(A, deferred=True),
        lambda: mapper.cancel_deferred_remove(A),
        lambda: mapper.wait(A, 0, 60),
    ]
    for action in actions:
        with refused(NotFound, match=A):
            action()


def test_errors_of_a_pool(mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        name = rig.pool.name
        assert mapper.message(name, "create_thin 0") == ""
        with refused(AlreadyExists, match="create_thin 0"):  # EEXIST
            mapper.message(name, "create_thin 0")
        with refused(NotFound, match="delete 7"):  # ENODATA
            mapper.message(name, "delete 7")
        with refused(NotFound):
            mapper.message(name, "create_snap 1 7")
        with refused(KernelInvalid):  # EINVAL
            mapper.message(name, "set_transaction_id 5 6")
        with refused(NotFound):  # ENODATA
            mapper.create(A, table=[ThinTable(MIB, rig.number(), 7).target()])
        with refused(InUse):  # EBUSY
            mapper.create(A, table=[PoolTable(MIB, rig.metadata.number, rig.data.number, rigs.BLOCK, 0).target()])
        assert not exists(mapper, A)
        rig.activate(0)
        with refused(InUse):  # EBUSY
            mapper.message(name, "delete 0")
        with refused(InUse):
            mapper.remove(name)


def test_a_message_to_a_pool_that_cannot_change(mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        rig.pool.reload(rig.table("read_only"))
        with refused(NeedsRepair):  # EOPNOTSUPP
            mapper.message(rig.pool.name, "create_thin 1")
        rig.pool.reload(rig.table())


def test_an_error_of_the_layer_below(mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.down()
        rig.metadata.break_()
        with pytest.raises(KernelError) as caught:
            mapper.create(A, table=[rig.table().target()])
        assert (caught.type, caught.value.errno) == (KernelError, 5)
        assert not exists(mapper, A)
        rig.metadata.heal()
        rig.up()


@pytest.mark.parametrize("kind", [IoctlDeviceMapper, Dmsetup])
def test_without_rights(kind: Callable[[], DeviceMapper]) -> None:
    def ask_as_nobody() -> None:
        os.setgroups([])
        os.setuid(65534)
        with suppress(NotPermitted):
            kind().info(A)
            os._exit(1)

    with processes.child(ask_as_nobody) as pid:
        assert processes.outcome(pid) == 0


# --- thin targets ---------------------------------------------------------------------------------------------------


def test_lines_of_a_pool_and_a_volume_are_the_same_from_both(
    mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path
) -> None:
    with rigs.pool(dm, scratch, features=("skip_block_zeroing", "error_if_no_space"), low_water=9) as rig:
        rig.volume(3, MIB)
        rigs.write_block(rig.thin(3), 5, rigs.pattern(1, 5))
        volume = rig.volume(3, MIB).name
        assert mapper.status(rig.pool.name, flush=True) == dm.status(rig.pool.name)
        assert mapper.status(rig.pool.name) == dm.status(rig.pool.name)
        assert mapper.status(volume) == dm.status(volume) == [Target(0, 32768, "thin", "128 767")]
        assert PoolTable.parse(mapper.table(rig.pool.name)) == rig.table()
        assert ThinTable.parse(mapper.table(volume)) == ThinTable(16 * MIB, rig.number(), 3)


def test_status_commits_only_when_it_is_asked_to(mapper: DeviceMapper, dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node = rig.thin(0)
        dm.message(rig.pool.name, "set_transaction_id 0 1")
        committed = _mapping_root(rig)
        rigs.write_block(node, 0, rigs.pattern(1, 0))
        mapper.status(rig.pool.name)
        assert _mapping_root(rig) == committed
        mapper.status(rig.pool.name, flush=True)
        assert _mapping_root(rig) != committed


def _mapping_root(rig: Rig) -> int:
    """The root of the mapping tree on the disk, which moves with every commit of a change."""
    (root,) = struct.unpack_from("<Q", rigs.read_block(rig.metadata.node, 0), 320)
    return int(root)
