"""Volumes without a file system in a store, and what is known of their blocks."""

import random
from pathlib import Path

from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.state.model import Kind, NewVolume, Volume
from dmthin.store.store import Store
from dmthin.units import MIB
from tests.support.rigs import Oracle


def raw_volume(store: Store, name: str, size: int = 64 * MIB) -> tuple[Volume, Path]:
    """A volume without a file system, and its node."""
    with store.volumes.creation.making(NewVolume(name, Kind.BASE, size, "ext4", None), activate=True) as volume:
        pass
    info = store.volumes.info(volume)
    assert info is not None
    return store.ledger.ready(name), Path(info.node)


def written(store: Store, name: str = "volume", blocks: int = 20) -> Oracle:
    """A new volume with something on it."""
    oracle = Oracle(raw_volume(store, name)[1], 512, random.Random(1))
    for _ in range(blocks):
        oracle.write()
    return oracle


def again(store: Store, oracle: Oracle, name: str = "volume") -> None:
    """The volume, wherever its device is now, still holds what was written; its device goes."""
    volume = store.ledger.ready(name)
    oracle.node = Path(store.volumes.activate(volume).node)
    oracle.verify()
    store.volumes.deactivate(volume)


def sizes(store: Store) -> tuple[int, int]:
    report = store.pool.status()
    return report.data_size, report.metadata_size


def exhaust(store: Store, dm: IoctlDeviceMapper) -> None:
    """Fill the metadata with volumes that the ledger does not know."""
    pool = store.lifecycle.activation.pool(store.ledger.store())
    for device_id in range(1000, 2000):
        pool.create_thin(device_id)


def forget_foreign_volumes(store: Store) -> None:
    pool = store.lifecycle.activation.pool(store.ledger.store())
    for device_id in range(1000, 2000):
        pool.delete(device_id)
