"""A pool and its volumes without a store around them: coming up from every half-way state, quiescing, sizes of use."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import AlreadyExists, DmthinError, InUse, KernelInvalid, NeedsRepair
from dmthin.kernel import block, mount
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import ThinTable
from dmthin.pool import filesystem, metadata
from dmthin.pool.guard import Guard
from dmthin.pool.metadata import Usage
from dmthin.pool.thinpool import ThinPool
from dmthin.units import MIB
from tests.support import processes, rigs
from tests.support.processes import program
from tests.support.rigs import BLOCK, Rig, active

# --- the pool comes up ----------------------------------------------------------------------------------------------


def test_a_pool_comes_up_from_every_state_that_a_dead_process_leaves(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        table = [rig.table().target()]
        for half_made in (
            lambda: None,
            lambda: dm.create(rig.pool.name, rig.pool.uuid),
            lambda: dm.create(rig.pool.name, rig.pool.uuid) and dm.load(rig.pool.name, table),
            lambda: dm.create(rig.pool.name, rig.pool.uuid, table) and dm.suspend(rig.pool.name),
            lambda: dm.create(rig.pool.name, rig.pool.uuid, table),
        ):
            rig.down()
            half_made()
            assert active(rig.pool.activate(rig.table()))
            assert rig.pool.table() == rig.table()
        rig.pool.deactivate()
        rig.pool.deactivate()
        rig.up()


def test_a_device_of_the_same_name_is_not_taken_over(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.down()
        dm.create(rig.pool.name, "SOMEBODY-else")
        with pytest.raises(AlreadyExists, match="is not this pool's"):
            rig.up()
        dm.remove(rig.pool.name)
        rig.up()


def test_a_pool_with_an_active_volume_stays(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.thin(0)
        with pytest.raises(InUse, match=rig.pool.name):
            rig.pool.deactivate()
        assert rig.pool.is_active()


def test_a_suspended_pool_has_all_its_metadata_on_the_disk(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rigs.write_block(rig.thin(0), 0, rigs.pattern(1, 0))
        with Guard(rig.pool.name):
            copy = scratch / "copy"
            program("dd", f"if={rig.metadata.node}", f"of={copy}", "bs=64k", "iflag=direct")
            metadata.check(copy)
            assert 'mapped_blocks="1"' in program("thin_dump", str(copy)).stdout


def test_a_metadata_snapshot_of_a_dead_reader_is_released(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        dm.message(rig.pool.name, "reserve_metadata_snap")
        stale = rig.pool.status().held_metadata_root
        rigs.write_block(rig.thin(0), 0, rigs.pattern(1, 0))
        with rig.pool.metadata_snapshot() as root:
            assert root == rig.pool.status().held_metadata_root != stale
            assert metadata.usage(rig.metadata.node) == {0: Usage(1, 0)}
        assert rig.pool.status().held_metadata_root is None


def test_what_is_shared_and_what_is_not(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        oracle = rigs.Oracle(rig.thin(0), 64, random.Random(1))
        for number in range(10):
            oracle.write(number)
        with rig.volume(0, 16 * MIB).quiesced():
            rig.pool.create_snap(1, 0)
        snapshot = oracle.fork(rig.activate(1))
        for number in range(4):
            oracle.write(number)
        for number in range(20, 25):
            snapshot.write(number)
        with rig.pool.metadata_snapshot():
            assert metadata.usage(rig.metadata.node) == {0: Usage(4, 6), 1: Usage(9, 6)}
        oracle.verify()
        snapshot.verify()
        status = rig.volume(1, 16 * MIB).status()
        assert (status.mapped, status.highest_mapped) == (15 * BLOCK, 25 * BLOCK)


def test_check_finds_damage(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, check=False) as rig:
        rigs.write_block(rig.thin(0), 0, rigs.pattern(1, 0))
        rig.down()
        metadata.check(rig.metadata.node)
        rigs.write_block(rig.metadata.node, 0, bytes(range(256)) * 256)
        with pytest.raises(NeedsRepair, match="damaged"):
            metadata.check(rig.metadata.node)


# --- volumes --------------------------------------------------------------------------------------------------------


def test_a_volume_comes_up_from_every_state_that_a_dead_process_leaves(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        volume, small = rig.volume(0, 16 * MIB), rig.volume(0, 8 * MIB)
        name, number = volume.name, rig.number()
        states: tuple[Callable[[], object], ...] = (
            lambda: None,
            lambda: dm.create(name, volume.uuid),
            lambda: dm.create(name, volume.uuid) and dm.load(name, dm_table(volume.size)),
            lambda: dm.create(name, volume.uuid, dm_table(volume.size)) and dm.suspend(name),
            lambda: dm.create(name, volume.uuid, dm_table(volume.size)),
            lambda: small.activate(number),
            lambda: small.activate(number) and dm.load(name, dm_table(volume.size)),
        )

        def dm_table(size: int) -> list[Target]:
            return [ThinTable(size, number, 0).target()]

        for half_made in states:
            assert volume.deactivate()
            half_made()
            info = volume.activate(number)
            assert active(info)
            assert block.size(Path(info.node)) == 16 * MIB
            assert volume.activate(number) == info


def test_a_volume_about_to_go_can_be_kept(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node, volume = rig.thin(0), rig.volume(0, 16 * MIB)
        with block.opened(node):
            assert volume.deactivate(deferred=True) is False
            assert not active(dm.info(volume.name))
            assert active(volume.activate(rig.number()))
        assert active(dm.info(volume.name))


def test_a_busy_volume_names_its_holders(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        node, volume = rig.thin(0), rig.volume(0, 16 * MIB)
        with block.opened(node), pytest.raises(InUse, match=rf"in use by .* \(pid {os.getpid()}, has {node} open\)"):
            volume.deactivate()
        assert volume.deactivate() is True
        assert volume.info() is None
        assert volume.deactivate() is True


def test_a_volume_that_does_not_exist_leaves_no_device(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        with pytest.raises(DmthinError):
            rig.activate(5)
        assert rig.volume(5, MIB).info() is None


def test_a_volume_read_only(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.create_thin(0)
        info = rig.volume(0, 16 * MIB).activate(rig.number(), read_only=True)
        assert info.read_only
        with pytest.raises(PermissionError):
            rigs.write_block(Path(info.node), 0, rigs.pattern(1, 0))


def test_discard_gives_back_what_nobody_else_has(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        oracle = rigs.Oracle(rig.thin(0), 256, random.Random(1))
        for number in range(100):
            oracle.write(number)
        with rig.volume(0, 16 * MIB).quiesced():
            rig.pool.create_snap(1, 0)
        snapshot = oracle.fork(rig.activate(1))
        for number in range(50, 150):
            snapshot.write(number)
        before = block.allocated(rig.data.path)
        rig.volume(1, 16 * MIB).discard_all()
        dm.status(rig.pool.name, flush=True)
        assert rig.pool.status().data_used_blocks == 100
        assert block.allocated(rig.data.path) == before - 100 * BLOCK
        oracle.verify()


# --- a snapshot of what is in use -----------------------------------------------------------------------------------


class Writer:
    """Writes files whose name tells their content, none of them synced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = random.Random(7)

    def write(self) -> None:
        content = self.random.randbytes(self.random.randrange(1, 100_000))
        path = self.folder / hashlib.sha256(content).hexdigest()
        path.with_suffix(".part").write_bytes(content)
        path.with_suffix(".part").rename(path)
        if self.random.random() < 0.3:
            (self.folder / min(names_of(self.folder))).unlink()


def names_of(folder: Path) -> set[str]:
    """The files that are complete."""
    return {entry.name for entry in folder.iterdir() if len(entry.name) == 64}


def whole_files(folder: Path) -> set[str]:
    """Their names, once the content of each has been seen to be what the name says."""
    names = names_of(folder)
    for name in names:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == name
    return names


@pytest.mark.parametrize("kind", [filesystem.EXT4, filesystem.XFS], ids=lambda kind: kind.name)
def test_snapshots_of_a_mounted_file_system_under_a_writer(
    dm: IoctlDeviceMapper, scratch: Path, kind: filesystem.FileSystem
) -> None:
    with rigs.pool(dm, scratch, data_size=512 * MIB, metadata_size=8 * MIB) as rig:
        size = max(kind.min_size, 128 * MIB)
        node, volume = rig.thin(0, size), rig.volume(0, size)
        kind.make(str(node), ())
        place = scratch / "origin"
        place.mkdir()
        mount.mount(str(node), place, kind.name)
        try:
            with processes.background(Writer(place).write):
                for device_id in range(1, 4):
                    with volume.quiesced():
                        there = names_of(place)
                        rig.pool.create_snap(device_id, 0)
                    look_at(rig, device_id, size, kind, there, scratch / f"snapshot-{device_id}")
            assert whole_files(place)
        finally:
            mount.unmount(place)


def look_at(rig: Rig, device_id: int, size: int, kind: filesystem.FileSystem, expected: set[str], place: Path) -> None:
    """A snapshot is a clean file system with exactly the files that were there while it was taken."""
    node = rig.activate(device_id, size)
    if kind is filesystem.EXT4:
        program("fsck.ext4", "-fn", str(node))
    place.mkdir()
    mount.mount(str(node), place, kind.name, kind.mount_options)
    try:
        assert whole_files(place) == expected
    finally:
        mount.unmount(place)
    if kind is filesystem.XFS:
        program("xfs_repair", "-n", str(node))
    assert rig.volume(device_id, size).deactivate()


def test_a_pool_is_known_by_its_uuid(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig, pytest.raises(AlreadyExists):
        ThinPool(rig.pool.name, "OTHER-pool", dm, dm).activate(rig.table())


def test_the_transaction_id_moves_only_from_what_it_is(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch) as rig:
        rig.pool.set_transaction_id(0, 2**63)
        with pytest.raises(KernelInvalid):
            rig.pool.set_transaction_id(0, 1)
        rig.bounce()
        assert rig.pool.status().transaction_id == 2**63
