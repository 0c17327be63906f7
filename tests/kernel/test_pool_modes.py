"""Every mode of a pool on the real kernel: what its status line says, what ThinPool makes of it, and the way out."""

import errno
import itertools
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    KernelError,
    KernelInvalid,
    NeedsRepair,
    NoDataSpace,
    NoMetadataSpace,
    NotFound,
)
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode, ThinStatus
from dmthin.pool.thinpool import ThinPool
from dmthin.store.create import create_store
from dmthin.units import MIB
from tests.support import processes, rigs, thintools
from tests.support.processes import program
from tests.support.rigs import BLOCK, Rig
from tests.support.stores import kernel_state

ERROR_POLICY = ("skip_block_zeroing", "error_if_no_space")
_TIMEOUT = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")


@pytest.fixture
def short_timeout() -> Iterator[None]:
    """Queued writes of a full pool fail after one second; the figure is one for all pools."""
    before = _TIMEOUT.read_text()
    _TIMEOUT.write_text("1")
    yield
    _TIMEOUT.write_text(before)


def fill(node: Path, blocks: range) -> None:
    for number in blocks:
        rigs.write_block(node, number, rigs.pattern(1, number))


def holds(node: Path, blocks: range) -> bool:
    return all(rigs.read_block(node, number) == rigs.pattern(1, number) for number in blocks)


# --- read-write -----------------------------------------------------------------------------------------------------


def test_a_pool_that_works(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=32 * BLOCK, low_water=5) as rig:
        fill(rig.thin(0), range(4))
        status = rig.pool.require_data_space(10)
        assert status.mode is PoolMode.READ_WRITE
        assert (status.data_used_blocks, status.data_total_blocks) == (4, 32)
        assert (status.metadata_total_blocks, status.metadata_reserve_blocks) == (1024, 102)
        assert 0 < status.metadata_net_used_blocks < 30
        assert (status.discard, status.no_space_policy) == ("discard_passdown", "queue_if_no_space")
        assert (status.needs_check, status.held_metadata_root, status.transaction_id) == (False, None, 0)


def test_the_share_that_must_stay_free(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=32 * BLOCK, metadata_size=2 * MIB) as rig:
        node = rig.thin(0)
        fill(node, range(29))
        assert rig.pool.require_data_space(10).data_used_blocks == 29
        fill(node, range(29, 30))
        with pytest.raises(NoDataSpace, match="less than 10%"):
            rig.pool.require_data_space(10)
        assert rig.pool.require_data_space(0).data_used_blocks == 30
        rig.volume(0, 16 * MIB).discard_all()
        for device_id in range(1, 300):
            rig.pool.create_thin(device_id)
        assert rig.pool.require_data_space(10).data_used_blocks == 0
        with pytest.raises(NoMetadataSpace, match="less than 50%"):
            rig.pool.require_data_space(50)


def test_replays(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(1)
        with pytest.raises(AlreadyExists):
            rig.pool.create_thin(1)
        rig.pool.create_snap(2, 1)
        with pytest.raises(AlreadyExists):
            rig.pool.create_snap(2, 1)
        with pytest.raises(NotFound):
            rig.pool.create_snap(3, 9)
        rig.activate(2)
        with pytest.raises(InUse):
            rig.pool.delete(2)
        rig.volume(2, MIB).deactivate()
        assert rig.pool.delete(2) is True
        assert rig.pool.delete(2) is False
        rig.pool.set_transaction_id(0, 7)
        with pytest.raises(KernelInvalid):
            rig.pool.set_transaction_id(0, 7)
        assert rig.pool.status().transaction_id == 7


# --- out of data space ----------------------------------------------------------------------------------------------


def test_full_with_errors(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK, features=ERROR_POLICY) as rig:
        node = rig.thin(0)
        fill(node, range(16))
        with pytest.raises(OSError, match="No space left"):
            fill(node, range(16, 17))
        status = rig.pool.require_writable()
        assert (status.mode, status.no_space_policy) == (PoolMode.OUT_OF_DATA_SPACE, "error_if_no_space")
        assert status.data_used_blocks == status.data_total_blocks == 16
        with pytest.raises(NoDataSpace, match="out of data space"):
            rig.pool.require_data_space(0)
        fill(node, range(16))
        rig.pool.create_thin(1)
        rig.data.grow(20 * BLOCK)
        rig.pool.reload(rig.table())
        assert rigs.await_mode(rig, PoolMode.READ_WRITE).data_total_blocks == 20
        fill(node, range(16, 20))
        assert holds(node, range(20))


def test_full_and_queueing_until_it_grows(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        node = rig.thin(0)
        fill(node, range(16))
        with rigs.writing(node, 16) as pid:
            status = rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            assert status.no_space_policy == "queue_if_no_space"
            with pytest.raises(NoDataSpace):
                rig.pool.require_data_space(0)
            assert holds(node, range(16))
            rig.data.grow(32 * BLOCK)
            rig.pool.reload(rig.table())
            assert processes.outcome(pid) == 0
        assert rig.pool.require_data_space(10).mode is PoolMode.READ_WRITE
        assert rigs.read_block(node, 16) == rigs.pattern(9, 16)


def test_a_suspend_without_flush_does_not_wait_for_queued_writes(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        node, name = rig.thin(0), rig.volume(0, MIB).name
        fill(node, range(16))
        with rigs.writing(node, 16) as pid:
            rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            assert dm.suspend(name, flush=False, lock_fs=False).suspended
            assert not dm.resume(name).suspended
            rig.data.grow(32 * BLOCK)
            rig.pool.reload(rig.table())
            assert processes.outcome(pid) == 0
        assert rigs.read_block(node, 16) == rigs.pattern(9, 16)


@pytest.mark.usefixtures("short_timeout")
def test_full_and_queueing_until_the_time_is_up(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        node = rig.thin(0)
        fill(node, range(16))
        with rigs.writing(node, 16) as pid:
            assert processes.outcome(pid) == errno.ENOSPC
        status = rig.pool.status()
        assert (status.mode, status.no_space_policy) == (PoolMode.OUT_OF_DATA_SPACE, "error_if_no_space")
        rig.data.grow(32 * BLOCK)
        rig.pool.reload(rig.table())
        assert rigs.await_mode(rig, PoolMode.READ_WRITE).no_space_policy == "queue_if_no_space"
        fill(node, range(16, 32))
        assert holds(node, range(32))


def test_full_until_something_is_discarded(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        oracle = rigs.Oracle(rig.thin(0), 64, random.Random(1))
        for number in range(16):
            oracle.write(number)
        with rigs.writing(oracle.node, 16) as pid:
            rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            oracle.discard(3)
            assert processes.outcome(pid) == 0
        oracle.verify()


def test_full_until_a_volume_is_deleted(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=16 * BLOCK) as rig:
        fill(rig.thin(1), range(8))
        rig.volume(1, MIB).deactivate()
        node = rig.thin(0)
        fill(node, range(8))
        with rigs.writing(node, 8) as pid:
            rigs.await_mode(rig, PoolMode.OUT_OF_DATA_SPACE)
            assert rig.pool.delete(1)
            assert processes.outcome(pid) == 0
        assert rig.pool.status().mode is PoolMode.READ_WRITE


# --- out of metadata space ------------------------------------------------------------------------------------------


def exhaust_metadata(rig: Rig) -> int:
    """Make volumes until the pool takes no more; the id of the one that it refused."""
    for device_id in itertools.count(1):
        try:
            rig.pool.create_thin(device_id)
        except NoMetadataSpace:
            return device_id
    raise AssertionError


def test_out_of_metadata(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, metadata_size=2 * MIB) as rig:
        node = rig.thin(0)
        fill(node, range(4))
        refused = exhaust_metadata(rig)
        status = rig.pool.status()
        assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, False)
        assert status.metadata_used_blocks == status.metadata_total_blocks == 512
        actions = (
            rig.pool.require_writable,
            lambda: rig.pool.require_data_space(0),
            lambda: rig.pool.create_thin(refused + 1),
            lambda: rig.pool.create_snap(refused + 1, 0),
            lambda: rig.pool.delete(1),
            lambda: rig.pool.set_transaction_id(0, 1),
        )
        for action in actions:
            with pytest.raises(NoMetadataSpace, match="metadata"):
                action()
        fill(node, range(4))
        with pytest.raises(OSError, match="Input/output error"):
            fill(node, range(4, 5))
        rig.metadata.grow(4 * MIB)
        rig.bounce()
        status = rig.pool.require_data_space(10)
        assert (status.mode, status.metadata_total_blocks) == (PoolMode.READ_WRITE, 1024)
        fill(node, range(4, 8))
        assert holds(node, range(8))
        rig.pool.create_thin(refused + 1)


# --- broken metadata ------------------------------------------------------------------------------------------------


def test_a_message_whose_commit_failed_is_no_success(dm: IoctlDeviceMapper, scratch: Path) -> None:
    """The kernel answers 0; the volume is not on the disk."""
    with rigs.pool(dm, scratch) as rig:
        node = rig.thin(0)
        fill(node, range(4))
        rig.pool.set_transaction_id(0, 1)
        rig.metadata.break_writes()
        assert dm.message(rig.pool.name, "create_thin 1") == ""
        status = rig.pool.status()
        assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True)
        rig.metadata.heal()
        _clear_needs_check(rig)
        assert thintools.device_ids(rig.metadata.node) == {0}
        rig.up()


def test_read_only_for_damage(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node = rig.thin(0)
        fill(node, range(4))
        rig.pool.create_thin(1)
        rig.metadata.break_writes()
        with pytest.raises(NeedsRepair, match="needs a check"):
            rig.pool.create_thin(2)
        rig.metadata.heal()
        rig.bounce()
        assert rig.pool.status().needs_check, "neither a healthy disk nor a resume is a way out"
        actions = (
            rig.pool.require_writable,
            lambda: rig.pool.require_data_space(0),
            lambda: rig.pool.create_thin(3),
            lambda: rig.pool.delete(1),
        )
        for action in actions:
            with pytest.raises(NeedsRepair, match="needs a check"):
                action()
        fill(node, range(4))
        with pytest.raises(OSError, match="Input/output error"):
            fill(node, range(4, 5))
        rig.data.grow(128 * MIB)
        rig.pool.reload(rig.table())
        assert rig.pool.status().data_total_blocks == 1024, "the kernel says yes and does not grow"
        _clear_needs_check(rig)
        rig.up()
        assert rig.pool.require_data_space(10).data_total_blocks == 2048
        assert holds(rig.activate(0), range(4))


def _clear_needs_check(rig: Rig) -> None:
    """The repair: all down, thin_check, the flag taken away."""
    rig.down()
    thintools.check(rig.metadata.node)
    program("thin_check", "--clear-needs-check-flag", "-q", str(rig.metadata.node))


def test_failed(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node, volume = rig.thin(0), rig.volume(0, 16 * MIB)
        fill(node, range(4))
        rig.pool.create_thin(1)
        rig.metadata.break_()
        with pytest.raises(DmthinError):
            rig.pool.create_thin(2)
        status = rig.pool.status()
        assert status.mode is PoolMode.FAIL
        assert volume.status() == ThinStatus(None, None)
        actions = (
            lambda: rig.pool.require_usable(status),
            rig.pool.require_writable,
            lambda: rig.pool.require_data_space(0),
            lambda: rig.pool.create_thin(3),
            lambda: rig.pool.delete(1),
        )
        for action in actions:
            with pytest.raises(NeedsRepair, match="has failed"):
                action()
        with pytest.raises(KernelInvalid):
            rig.activate(1)
        with pytest.raises(OSError, match="Input/output error"):
            rigs.read_block(node, 0)
        rig.metadata.heal()
        rig.bounce()
        assert rig.pool.status().mode is PoolMode.FAIL, "for good, until the pool has been down"
        rig.down()
        thintools.check(rig.metadata.node)
        rig.up()
        assert rig.pool.require_data_space(10).mode is PoolMode.READ_WRITE
        assert holds(rig.activate(0), range(4))


def test_a_data_device_that_fails_is_not_the_pools_fault(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node = rig.thin(0)
        fill(node, range(4))
        rig.data.break_()
        with pytest.raises(OSError, match="Input/output error"):
            rigs.read_block(node, 0)
        assert rig.pool.require_data_space(10).mode is PoolMode.READ_WRITE
        rig.data.heal()
        assert holds(node, range(4))


def test_a_pool_that_was_asked_to_be_read_only(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        rig.pool.reload(rig.table("read_only"))
        with pytest.raises(NeedsRepair, match="is read-only"):
            rig.pool.create_thin(1)
        rig.pool.reload(rig.table("skip_block_zeroing"))
        rig.pool.create_thin(1)


def test_what_is_no_pool(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        wrong = ThinPool(rig.data.name, "", dm, dm)
        with pytest.raises(KernelError, match="found: linear"):
            wrong.status()
        missing = ThinPool("rig-missing", "", dm, dm)
        assert (missing.info(), missing.is_active()) == (None, False)
        with pytest.raises(NotFound):
            missing.status()
        missing.deactivate()


def test_a_pool_that_needs_a_check_goes_down(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.disk(dm, scratch / "metadata-disk", 16 * MIB) as disk:
        before = kernel_state()
        options = ("dm.loopdatasize=1G", f"dm.metadatadev={disk.node}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            disk.break_writes()
            with pytest.raises(DmthinError):
                store.lifecycle.activation.pool(store.ledger.store()).create_thin(1000)
            disk.heal()
            status = store.pool.status().status
            assert status is not None and status.needs_check
            try:
                store.pool.deactivate()
                assert kernel_state() == before
                with suppress(DmthinError):
                    store.pool.activate()
                store.pool.deactivate()
                assert kernel_state() == before
            finally:
                subprocess.run(["thin_check", "-q", "--clear-needs-check-flag", str(disk.node)], check=False)
                store.pool.destroy()
