"""A store's pool on files as it grows: under a writer, when it is full, after processes that were killed."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmthin.errors import (
    DmthinError,
    InvalidValue,
    NoDataSpace,
    NoMetadataSpace,
)
from dmthin.kernel import block
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.store.store import Store
from dmthin.units import GIB, MIB, TIB
from tests.support import processes, rigs
from tests.support.raw_volumes import again, exhaust, forget_foreign_volumes, raw_volume, sizes, written
from tests.support.rigs import Oracle
from tests.support.stores import reboot

MakeStore = Callable[..., Store]


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
        pool = store.lifecycle.activation.pool(record)
        store.dm.load(pool.name, [replace(pool.table(), size=data_size).target()])


def test_growth_that_was_killed_is_finished_after_a_reboot(make_store: MakeStore) -> None:
    store = make_store()
    oracle = written(store)
    with store.ledger.transaction("as a process that is killed next"):
        store.ledger.save_store(replace(store.ledger.store(), data_target=6 * GIB))
    reboot(store)
    again(store, oracle)
    assert sizes(store) == (6 * GIB, 64 * MIB)


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
