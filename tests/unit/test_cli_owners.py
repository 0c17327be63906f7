"""What the command takes for an engine's, and which volume it takes a name for, in a ledger without a pool."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmthin.cli.owners import meant, meant_to_remove, owners_of
from dmthin.errors import InUse, NotFound
from dmthin.store.state import schema
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks, make_lock_file
from dmthin.store.state.model import Kind, NewVolume, State, StoreRecord, StoreState, new_uuid
from dmthin.store.state.snapshot_table import SnapshotTable

LAYER, BUILT, WEB = "5" * 64, "0123456789abcdefghijklmno", "8c1f" + "a" * 60

Made = Callable[..., Any]


@pytest.fixture
def stored(tmp_path: Path) -> Made:
    """Make the parts of a store that are read for names: a ledger with containers of these names, and its place."""
    home = tmp_path / "dmthin"
    home.mkdir()

    def make(*names: str) -> Any:
        schema.make(home / "ledger.db")
        make_lock_file(home / "lock")
        ledger = Ledger(home / "ledger.db")
        with ledger.transaction("add"):
            ledger.save_store(StoreRecord(new_uuid(), StoreState.READY, 65536, "data", "metadata", "", (), 1, False))
            for name in names:
                added = ledger.add(NewVolume(name, Kind.CONTAINER, 1 << 30, "ext4", None), Locks(home / "lock"))
                ledger.save(added.volume.with_state(State.READY))
                added.lock.release()
        snapshots = SnapshotTable(ledger)
        return SimpleNamespace(ledger=ledger, snapshots=snapshots, layout=SimpleNamespace(root=home))

    return make


def record(data_root: Path) -> Path:
    """Write dockerd's records of the container web, whose root is LAYER; returns its directory of layers."""
    layers = data_root / "image/dmthin/layerdb"
    mount = layers / "mounts" / WEB
    mount.mkdir(parents=True)
    (mount / "mount-id").write_text(LAYER)
    config = data_root / "containers" / WEB / "config.v2.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"Name": "/web"}')
    return layers


def test_layers_stay_dockerds_when_its_records_are_lost(stored: Made, tmp_path: Path) -> None:
    store = stored(LAYER, f"{LAYER}-init", BUILT, "mine")
    layers = record(tmp_path)
    assert owners_of(store).of(BUILT)
    shutil.rmtree(layers)
    owners = owners_of(store)
    for name in (LAYER, f"{LAYER}-init"):
        with pytest.raises(InUse, match=r"is a layer of dockerd without a record: let dockerd remove it, or give"):
            owners.require_none(name)
    with pytest.raises(InUse, match=r"^2 volumes belong to dockerd"):
        owners.require_none_of(store.ledger.volumes())
    owners.require_none(BUILT)
    owners.require_none("mine")


def test_force_takes_no_short_beginning_of_an_id(stored: Made, tmp_path: Path) -> None:
    store = stored(LAYER, "mine", "8c")
    record(tmp_path)
    for text in ("web", WEB, WEB[:12], LAYER, LAYER[:12]):
        assert meant_to_remove(store, text, Kind.CONTAINER, force=True) == LAYER
        with pytest.raises(InUse, match="use docker rm web"):
            meant_to_remove(store, text, Kind.CONTAINER, force=False)
    assert meant(store, "8c1", Kind.CONTAINER) == LAYER
    for text in ("8c1", "5", WEB[:11]):
        with pytest.raises(NotFound, match="write the whole id, or 12 digits"):
            meant_to_remove(store, text, Kind.CONTAINER, force=True)
        with pytest.raises(InUse, match="use docker rm web"):
            meant_to_remove(store, text, Kind.CONTAINER, force=False)
    for name in ("mine", "8c", "nothing"):
        for force in (True, False):
            assert meant_to_remove(store, name, Kind.CONTAINER, force=force) == name
