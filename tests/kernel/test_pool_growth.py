"""A store's pool as it grows, on files and on devices; pools of other makers; copies; what a reboot leaves."""

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    NeedsRepair,
    NoDataSpace,
    NoMetadataSpace,
    NotFound,
    Unavailable,
)
from dmthin.kernel import block, loop, mount, process
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.pool import metadata
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, KIB, METADATA_BLOCK, MIB, TIB
from tests.support import processes, rigs, thintools
from tests.support.raw_volumes import again, exhaust, forget_foreign_volumes, raw_volume, sizes, written
from tests.support.rigs import Disk, Oracle
from tests.support.stores import SMALL, check_store

MakeStore = Callable[..., Store]
MakeDisk = Callable[[str, int], Disk]
DEVICE_OPTIONS = ("dm.basesize=256M",)


@pytest.fixture
def make_disk(dm: IoctlDeviceMapper, scratch: Path) -> Iterator[MakeDisk]:
    """Make disks, for stores that are made after them."""
    with ExitStack() as stack:
        yield lambda name, size: stack.enter_context(rigs.disk(dm, scratch / name, size))


# --- growth on files ------------------------------------------------------------------------------------------------


def test_growth_under_a_writer(make_store: MakeStore) -> None:
    store = make_store("dm.loopdatasize=512M", "dm.loopmetadatasize=16M")
    volume, node = raw_volume(store, "volume")
    with rigs.stomping(Oracle(node, 1024, random.Random(1))):
        for step in range(1, 4):
            report = store.pool.extend(data_size=(512 + 256 * step) * MIB, metadata_size=(16 + 8 * step) * MIB)
            assert (report.data_size, report.metadata_size) == ((512 + 256 * step) * MIB, (16 + 8 * step) * MIB)
            assert report.mode == "rw"
    store.volumes.deactivate(volume)


def test_growth_of_one_of_the_two_and_of_neither(store: Store) -> None:
    assert sizes(store) == (4 * GIB, 64 * MIB)
    store.pool.extend(data_size=5 * GIB)
    assert sizes(store) == (5 * GIB, 64 * MIB)
    store.pool.extend(metadata_size=96 * MIB)
    assert sizes(store) == (5 * GIB, 96 * MIB)
    store.pool.extend()
    store.pool.extend(data_size=5 * GIB, metadata_size=96 * MIB)
    assert sizes(store) == (5 * GIB, 96 * MIB)
    store.pool.deactivate()
    store.pool.extend(data_size=6 * GIB)
    assert sizes(store) == (6 * GIB, 96 * MIB)


REFUSED: tuple[tuple[dict[str, int], type[DmthinError], str], ...] = (
    ({"data_size": GIB}, InvalidValue, "data has 4G and cannot shrink to 1G"),
    ({"metadata_size": 32 * MIB}, InvalidValue, "metadata has 64M and cannot shrink"),
    ({"data_size": 5 * GIB, "metadata_size": MIB}, InvalidValue, "cannot shrink"),
    ({"metadata_size": 32 * GIB}, InvalidValue, r"15\.9G"),
    ({"data_size": 1024 * TIB}, InvalidValue, "metadata has no room for that much data: .* --metadata-size"),
    ({"data_size": 17 * TIB, "metadata_size": GIB}, NoDataSpace, "no files that large"),
)


def test_growth_that_is_refused_leaves_the_store_as_it_was(store: Store) -> None:
    """Less than now, more than the kernel can use, more than the host can hold."""
    oracle = written(store)
    for number, (request, kind, words) in enumerate(REFUSED):
        with pytest.raises(kind, match=words):
            store.pool.extend(**request)
        assert sizes(store) == (4 * GIB, 64 * MIB)
        assert store.layout.data(store.ledger.store()).size() == 4 * GIB
        raw_volume(store, f"next-{number}")
    store.pool.extend(data_size=5 * GIB)
    assert sizes(store) == (5 * GIB, 64 * MIB)
    again(store, oracle)


def test_growth_is_the_way_out_of_a_full_pool(make_store: MakeStore) -> None:
    store = make_store("dm.loopdatasize=16M", "dm.loopmetadatasize=2M")
    volume, node = raw_volume(store, "volume")
    for number in range(256):
        rigs.write_block(node, number, rigs.pattern(9, number))
    with rigs.writing(node, 256) as pid:
        with IoctlDeviceMapper() as dm:
            pool_name = store.ledger.store().pool_name
            while PoolStatus.parse(dm.status(pool_name)).mode is not PoolMode.OUT_OF_DATA_SPACE:
                dm.wait(pool_name, dm.info(pool_name).event_number, 60)
        with pytest.raises(NoDataSpace):
            raw_volume(store, "another")
        store.pool.extend(data_size=64 * MIB)
        assert processes.outcome(pid) == 0
    assert all(rigs.read_block(node, number) == rigs.pattern(9, number) for number in range(257))
    store.volumes.deactivate(volume)


def test_growth_is_the_way_out_of_full_metadata(make_store: MakeStore) -> None:
    store = make_store("dm.loopmetadatasize=2M", "dm.min_free_space=0%")
    oracle = written(store)
    with pytest.raises(NoMetadataSpace), IoctlDeviceMapper() as dm:
        exhaust(store, dm)
    report = store.pool.extend(metadata_size=8 * MIB)
    assert (report.mode, report.metadata_size) == ("rw", 8 * MIB)
    forget_foreign_volumes(store)
    raw_volume(store, "another")
    again(store, oracle)


def test_growth_that_was_killed_is_finished_by_the_next_change(store: Store) -> None:
    oracle = written(store)
    for step, done in enumerate(("nothing", "files grown", "loops refreshed", "table loaded"), start=1):
        data_size, metadata_size = (4 + step) * GIB, (64 + 8 * step) * MIB
        _grow_and_die(store, data_size, metadata_size, done)
        raw_volume(store, f"next-{step}")
        assert sizes(store) == (data_size, metadata_size)
        record = store.ledger.store()
        assert (record.data_target, record.metadata_target) == (None, None)
    again(store, oracle)


def _grow_and_die(store: Store, data_size: int, metadata_size: int, done: str) -> None:
    """What a process leaves that is killed once it has done this much of an extension."""
    record = replace(store.ledger.store(), data_target=data_size, metadata_target=metadata_size)
    with store.ledger.transaction("the intent"):
        store.ledger.save_store(record)
    for backing, target in ((store.layout.data(record), data_size), (store.layout.metadata(record), metadata_size)):
        if done == "files grown":
            block.grow_sparse(backing.path, target)
        elif done != "nothing":
            backing.grow(target)
    if done == "table loaded":
        pool = store.lifecycle.pool(record)
        store.dm.load(pool.name, [replace(pool.table(), size=data_size).target()])


def test_growth_that_was_killed_is_finished_after_a_reboot(make_store: MakeStore) -> None:
    store = make_store()
    oracle = written(store)
    with store.ledger.transaction("as a process that is killed next"):
        store.ledger.save_store(replace(store.ledger.store(), data_target=6 * GIB))
    reboot(store)
    again(store, oracle)
    assert sizes(store) == (6 * GIB, 64 * MIB)


# --- block devices --------------------------------------------------------------------------------------------------


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
    process.run("mkfs.ext4", "-q", str(data.node))
    with pytest.raises(AlreadyExists, match=r"carries data \(ext4\)"):
        device_store(scratch / "store", data, meta)
    assert not (scratch / "store").exists()
    rigs.write_block(meta.node, 0, rigs.pattern(1, 0))
    process.run("wipefs", "--all", str(data.node))
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
    process.run("mkfs.ext4", "-q", str(other.node))
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
    with pytest.raises(Unavailable, match="did not come"):
        store.pool.activate()
    dm.create(data.name, table=data.table())
    again(store, oracle)
    finish(store)


# --- a pool of another maker ----------------------------------------------------------------------------------------


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
    with pytest.raises(InvalidValue, match="no device name"):
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


# --- the wrong ledger, the wrong size -------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["active", "inactive"])
def test_a_copied_store_does_not_touch_the_pool_of_the_other(make_store: MakeStore, scratch: Path, when: str) -> None:
    store = make_store()
    oracle = written(store)
    if when == "inactive":
        store.volumes.deactivate(store.ledger.ready("volume"))
        store.pool.deactivate()
    store.ledger.close()
    process.run("cp", "-a", "--sparse=always", str(store.layout.root), str(scratch / "copy"))
    store = Store(store.layout.root)
    store.pool.activate()
    with Store(scratch / "copy") as copy:
        actions: tuple[Callable[[], object], ...] = (
            copy.pool.activate,
            lambda: raw_volume(copy, "mine"),
            lambda: copy.volumes.remove(copy.ledger.ready("volume")),
            lambda: copy.pool.extend(data_size=8 * GIB),
            copy.pool.trim,
            copy.pool.deactivate,
            copy.pool.destroy,
        )
        for action in actions:
            with pytest.raises(AlreadyExists, match=f"held by another store, on {store.layout.root}/data"):
                action()
    assert sizes(store) == (4 * GIB, 64 * MIB)
    again(store, oracle)
    store.close()


def test_another_block_size_later_is_an_error_and_the_pool_is_unharmed(store: Store) -> None:
    oracle = written(store)
    root = store.layout.root
    for options in (["dm.blocksize=128K"], ["dm.loopdatasize=8G"], ["dm.datadev=/dev/ubda"]):
        with pytest.raises(InvalidValue, match=options[0].split("=")[0]):
            Store(root, options)
    with Store(root, ["dm.blocksize=64K", "dm.loopdatasize=4096M"]) as same:
        again(same, oracle)
    assert store.ledger.store().block_size == 64 * KIB


def test_a_ledger_from_an_old_copy_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    oracle = written(store)
    store.volumes.deactivate(store.ledger.ready("volume"))
    store.pool.deactivate()
    store.ledger.close()
    ledger = store.layout.ledger
    old = ledger.read_bytes()
    for _ in range(2):
        with Store(store.layout.root) as now:
            now.pool.activate()
            now.pool.deactivate()
    new = ledger.read_bytes()
    ledger.write_bytes(old)
    with Store(store.layout.root) as now, pytest.raises(NeedsRepair, match="generation"):
        now.pool.activate()
    with Store(store.layout.root) as now, pytest.raises(NeedsRepair, match="generation"):
        raw_volume(now, "another")
    take_pool_down(store)
    store.ledger.close()
    ledger.write_bytes(new)
    again(store, oracle)


# --- after a reboot -------------------------------------------------------------------------------------------------


def reboot(store: Store) -> None:
    """Take away what a reboot takes away, behind the store's back."""
    record = store.ledger.store()
    for entry in mount.under(store.layout.root):
        mount.unmount(Path(entry.target))
    take_pool_down(store)
    assert loop.find(store.layout.data(record).path) is None


def suspend(store: Store) -> None:
    """As a process that is killed while it has the pool suspended."""
    process.run("dmsetup", "suspend", store.ledger.store().pool_name)


def take_devices_down(store: Store) -> None:
    """As an administrator who takes the pool down by hand and leaves its loops."""
    record = store.ledger.store()
    names = [line.split("\t")[0] for line in process.run("dmsetup", "ls").stdout.splitlines()]
    ours = [name for name in names if name.startswith(record.prefix)]
    for name in sorted(ours, key=lambda name: name == record.pool_name):
        process.run("dmsetup", "remove", name)


def take_pool_down(store: Store) -> None:
    take_devices_down(store)
    record = store.ledger.store()
    for backing in (store.layout.data(record), store.layout.metadata(record)):
        if backing.is_file and (device := loop.find(backing.path)):
            subprocess.run(["losetup", "--detach", device.node], check=True)


def test_everything_comes_back(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    (store.containers.mount("web") / "kept").write_text("x")
    oracle = written(store)
    for take_away in (reboot, take_devices_down, suspend):
        store.containers.unmount("web")
        take_away(store)
        again(store, oracle)
        assert (store.containers.mount("web") / "kept").read_text() == "x"


def test_the_metadata_is_checked_after_a_reboot(store: Store) -> None:
    oracle = written(store)
    reboot(store)
    meta = store.layout.metadata(store.ledger.store()).path
    (root,) = (int.from_bytes(block.read(meta, 8, 320), "little"),)
    good = block.read(meta, METADATA_BLOCK, root * METADATA_BLOCK)
    overwrite(meta, root * METADATA_BLOCK, bytes(METADATA_BLOCK))
    for _ in range(2):
        with pytest.raises(NeedsRepair, match="damaged"):
            store.pool.activate()
        assert not store.pool.status().active
        assert loop.find(meta) is None
    overwrite(meta, root * METADATA_BLOCK, good)
    again(store, oracle)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_after_a_clean_end_it_is_not_checked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = written(store)
    store.volumes.deactivate(store.ledger.ready("volume"))
    store.pool.deactivate()
    monkeypatch.setattr(metadata, "check", _must_not_run)
    again(store, oracle)
    monkeypatch.undo()


def _must_not_run(path: Path) -> None:
    raise AssertionError(f"thin_check of {path}")


def test_a_store_on_tmpfs_comes_back_too(scratch: Path) -> None:
    """Its files take no direct I/O, which thin_check asks for."""
    folder = scratch / "tmpfs"
    folder.mkdir()
    mount.mount("tmpfs", folder, "tmpfs")
    try:
        store = create_store(folder / "store", SMALL)
        oracle = written(store)
        reboot(store)
        again(store, oracle)
        store.pool.destroy()
        store.close()
    finally:
        mount.unmount(folder)


def test_a_missing_file_is_named(store: Store) -> None:
    oracle = written(store)
    reboot(store)
    data = store.layout.data(store.ledger.store()).path
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(Unavailable, match=f"{data} is missing"):
        store.pool.activate()
    assert loop.find(store.layout.metadata(store.ledger.store()).path) is None
    data.with_name("elsewhere").rename(data)
    again(store, oracle)


def test_data_beyond_what_the_metadata_maps_is_refused(make_store: Callable[..., Store], tree: Path) -> None:
    store = make_store("dm.loopmetadatasize=8M", "dm.basesize=64M")
    store.images.import_("image", tree)
    with pytest.raises(InvalidValue, match="metadata"):
        store.pool.extend(data_size=4 * TIB)
    report = store.pool.status()
    assert report.status is not None
    assert (report.status.mode, report.status.needs_check) == (PoolMode.READ_WRITE, False)
    assert report.data_size == 4 * GIB
    store.containers.create("image", "web")
    store.pool.extend(data_size=8 * GIB)
    assert store.pool.status().data_size == 8 * GIB
