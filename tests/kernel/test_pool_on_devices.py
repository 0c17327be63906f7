"""Stores on block devices of an administrator, or on a pool that they made (dm.datadev, dm.thinpooldev)."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    InUse,
    InvalidValue,
    NotFound,
    Unavailable,
)
from dmthin.kernel import block, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support import rigs, thintools
from tests.support.processes import program
from tests.support.raw_volumes import again, raw_volume, sizes, written
from tests.support.rigs import Disk, Oracle
from tests.support.stores import check_store, reboot

MakeDisk = Callable[[str, int], Disk]
DEVICE_OPTIONS = ("dm.basesize=256M",)


@pytest.fixture
def make_disk(dm: IoctlDeviceMapper, scratch: Path) -> Iterator[MakeDisk]:
    """Make disks, for stores that are made after them."""
    with ExitStack() as stack:
        yield lambda name, size: stack.enter_context(rigs.disk(dm, scratch / name, size))


def on_devices(*disks: Disk) -> list[str]:
    return [f"{option}={disk.node}" for option, disk in zip(("dm.datadev", "dm.metadatadev"), disks, strict=True)]


def device_store(root: Path, data: Disk, meta: Disk, *options: str, force: bool = False) -> Store:
    return create_store(root, [*DEVICE_OPTIONS, *on_devices(data, meta), *options], force=force)


def finish(store: Store) -> None:
    """As `take_down` does for a store on files; the devices stay."""
    record = store.ledger.store()
    check_store(store)
    if not record.pool:
        thintools.check(store.layout.metadata(record).path)
    store.pool.destroy()
    store.close()


def test_devices_that_grow_under_a_writer(scratch: Path, make_disk: MakeDisk) -> None:
    data, meta = make_disk("data", 512 * MIB), make_disk("meta", 16 * MIB)
    store = device_store(scratch / "store", data, meta)
    assert sizes(store) == (512 * MIB, 16 * MIB)
    volume, node = raw_volume(store, "volume")
    with rigs.stomping(Oracle(node, 1024, random.Random(1))):
        data.grow(768 * MIB)
        assert sizes(store) == (512 * MIB, 16 * MIB)
        with pytest.raises(InvalidValue, match="has only 768M"):
            store.pool.extend(data_size=GIB)
        store.pool.extend()
        assert sizes(store) == (768 * MIB, 16 * MIB)
        meta.grow(32 * MIB)
        data.grow(GIB)
        store.pool.extend()
        assert sizes(store) == (GIB, 32 * MIB)
        with pytest.raises(InvalidValue, match="cannot shrink"):
            store.pool.extend(data_size=512 * MIB)
    store.volumes.deactivate(volume)
    finish(store)


def test_the_end_of_a_store_leaves_its_metadata_device_blank(scratch: Path, make_disk: MakeDisk) -> None:
    data, meta = make_disk("data", 512 * MIB), make_disk("meta", 16 * MIB)
    store = device_store(scratch / "store", data, meta)
    written(store)
    store.pool.destroy()
    store.close()
    assert block.signature(meta.node) == ""
    assert not (scratch / "store").exists()
    with pytest.raises(AlreadyExists, match=f"{data.node} carries data"):
        device_store(scratch / "store", data, meta)
    finish(device_store(scratch / "store", data, meta, force=True))


def test_a_device_that_carries_data_is_refused_unless_forced(scratch: Path, make_disk: MakeDisk) -> None:
    data, meta = make_disk("data", 512 * MIB), make_disk("meta", 16 * MIB)
    program("mkfs.ext4", "-q", str(data.node))
    with pytest.raises(AlreadyExists, match=r"carries data \(ext4\)"):
        device_store(scratch / "store", data, meta)
    assert not (scratch / "store").exists()
    rigs.write_block(meta.node, 0, rigs.pattern(1, 0))
    program("wipefs", "--all", str(data.node))
    with pytest.raises(AlreadyExists, match="carries data"):
        device_store(scratch / "store", data, meta)
    assert rigs.read_block(meta.node, 0) == rigs.pattern(1, 0)
    finish(device_store(scratch / "store", data, meta, force=True))


def test_a_device_in_use_is_refused_even_if_forced(scratch: Path, make_disk: MakeDisk) -> None:
    data, meta, other = make_disk("data", 512 * MIB), make_disk("meta", 16 * MIB), make_disk("other", 512 * MIB)
    store = device_store(scratch / "store", data, meta)
    for pair in ((data, other), (other, meta)):
        with pytest.raises(InUse, match="in use"):
            device_store(scratch / "second", *pair, force=True)
    place = scratch / "place"
    place.mkdir()
    program("mkfs.ext4", "-q", str(other.node))
    mount.mount(str(other.node), place, "ext4")
    with pytest.raises(InUse, match="in use"):
        device_store(scratch / "second", other, meta, force=True)
    mount.unmount(place)
    with pytest.raises(InvalidValue, match="same device"):
        device_store(scratch / "second", other, other, force=True)
    assert not (scratch / "second").exists()
    finish(store)


def test_devices_that_are_not_there_after_a_reboot(scratch: Path, make_disk: MakeDisk, dm: IoctlDeviceMapper,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    data, meta = make_disk("data", 512 * MIB), make_disk("meta", 16 * MIB)
    store = device_store(scratch / "store", data, meta)
    oracle = written(store)
    reboot(store)
    dm.remove(data.name)
    monkeypatch.setattr("dmthin.pool.backing._DEVICE_WAIT_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="did not appear"):
        store.pool.activate()
    dm.create(data.name, table=data.table())
    again(store, oracle)
    finish(store)


def test_a_pool_made_by_hand(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=GIB, metadata_size=16 * MIB) as rig:
        name = rig.pool.name
        options = [*DEVICE_OPTIONS, f"dm.thinpooldev=/dev/mapper/{name}"]
        store = create_store(scratch / "store", options)
        oracle = written(store)
        assert rig.pool.status().transaction_id == 1
        with pytest.raises(InUse, match="another store or program"):
            create_store(scratch / "second", options)
        assert not (scratch / "second").exists()
        with pytest.raises(InvalidValue, match="made outside of dmthin"):
            store.pool.extend(data_size=2 * GIB)
        store.pool.deactivate()
        assert rig.pool.is_active(), "it is not ours to take down"
        again(store, oracle)
        store.pool.destroy()
        store.close()
        assert rig.pool.status().transaction_id == 0
        assert rig.pool.status().data_used_blocks == 0
        rig.down()
        assert thintools.device_ids(rig.metadata.node) == set()
        rig.up()
        again_store = create_store(scratch / "store", options)
        again_store.pool.destroy()
        again_store.close()


def test_a_pool_made_by_hand_that_is_not_there(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with pytest.raises(NotFound, match="no pool rig-nothing"):
        create_store(scratch / "store", ["dm.thinpooldev=rig-nothing"])
    with rigs.disk(dm, scratch / "disk", 16 * MIB) as disk, pytest.raises(InvalidValue, match="not a thin pool"):
        create_store(scratch / "store", [f"dm.thinpooldev={disk.name}"])
    with pytest.raises(InvalidValue, match="invalid device name"):
        create_store(scratch / "store", ["dm.thinpooldev=a b"])
    with rigs.pool(dm, scratch, data_size=GIB) as rig:
        store = create_store(scratch / "store", [*DEVICE_OPTIONS, f"dm.thinpooldev={rig.pool.name}"])
        again(store, written(store))
        rig.down()
        with pytest.raises(Unavailable, match="not active"):
            store.pool.activate()
        rig.up()
        store.pool.destroy()
        store.close()


def test_a_pool_with_volumes_of_another_program_is_refused(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=GIB) as rig:
        rig.pool.create_thin(7)
        with pytest.raises(InUse):
            create_store(scratch / "store", [*DEVICE_OPTIONS, f"dm.thinpooldev={rig.pool.name}"])
        rig.pool.delete(7)
