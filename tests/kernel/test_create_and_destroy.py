"""Stores that are made and destroyed: one maker of a root, unfinished ledgers, devices that are not the store's."""

import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InvalidValue,
    Unavailable,
)
from dmthin.kernel import block, loop
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, KIB, MIB
from tests.support import processes, rigs, thintools
from tests.support.processes import start
from tests.support.raw_volumes import again, written
from tests.support.stores import SMALL


@pytest.mark.parametrize("content", ["nothing", "a database without tables"])
def test_a_ledger_that_was_never_finished_is_made_anew(
    make_store: Callable[..., Store], scratch: Path, content: str
) -> None:
    root = scratch / "store"
    root.mkdir(mode=0o700)
    if content == "nothing":
        (root / "ledger.db").touch()
    else:
        with closing(sqlite3.connect(root / "ledger.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        assert (root / "ledger.db").stat().st_size == 4096
    store = make_store()
    assert store.pool.status().active


def test_one_root_has_one_maker(scratch: Path) -> None:
    for turn in range(4):
        root = scratch / f"store-{turn}"
        pids = [start(partial(_make, root)) for _ in range(3)]
        outcomes = sorted(processes.outcome(pid) for pid in pids)
        with Store(root) as store:
            active = store.pool.status().active
            store.pool.destroy()
        assert outcomes == [0, 4, 4]
        assert active
        assert not root.exists()


def _make(root: Path) -> None:
    try:
        create_store(root, SMALL).close()
    except AlreadyExists:
        os._exit(4)


def test_destroy_leaves_a_foreign_device_alone(scratch: Path) -> None:
    disks = {name: _loop(scratch / name, size) for name, size in _DISKS.items()}
    link = scratch / "link"
    link.symlink_to(disks["metadata"].node)
    try:
        options = (f"dm.datadev={disks['data'].node}", f"dm.metadatadev={link}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            store.pool.deactivate()
            stranger = Path(disks["stranger"].node)
            subprocess.run(["mkfs.ext4", "-q", str(stranger)], check=True)
            link.unlink()
            link.symlink_to(stranger)
            with suppress(DmthinError):
                store.pool.destroy()
            found = block.signature(stranger)
            link.unlink()
            link.symlink_to(disks["metadata"].node)
            if store.layout.ledger.exists():
                store.pool.destroy()
        assert found == "ext4"
    finally:
        for disk in disks.values():
            disk.detach()


_DISKS = {"data": GIB, "metadata": 64 * MIB, "stranger": 64 * MIB}


def _loop(path: Path, size: int) -> loop.LoopDevice:
    block.make_sparse(path, size)
    return loop.attach(path)


def test_a_store_on_a_pool_that_is_down_is_not_destroyed(dm: IoctlDeviceMapper, scratch: Path, tree: Path) -> None:
    with rigs.pool(dm, scratch, data_size=GIB, metadata_size=16 * MIB) as rig:
        options = (f"dm.thinpooldev={rig.pool.name}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            store.images.import_("image", tree)
            held = thintools.ids_in(store)
            store.pool.deactivate()
            rig.down()
            with pytest.raises(Unavailable, match=rig.pool.name):
                store.pool.destroy()
            assert store.ledger.ready("image")
            rig.up()
            assert thintools.ids_in(store) == held
            store.containers.create("image", "web")
            store.pool.destroy()
        assert not (scratch / "store").exists()
        assert rig.pool.status().transaction_id == 0


def test_another_block_size_later_is_an_error_and_the_pool_is_unharmed(store: Store) -> None:
    oracle = written(store)
    root = store.layout.root
    for options in (["dm.blocksize=128K"], ["dm.loopdatasize=8G"], ["dm.datadev=/dev/ubda"]):
        with pytest.raises(InvalidValue, match=options[0].split("=")[0]):
            Store(root, options)
    with Store(root, ["dm.blocksize=64K", "dm.loopdatasize=4096M"]) as same:
        again(same, oracle)
    assert store.ledger.store().block_size == 64 * KIB
