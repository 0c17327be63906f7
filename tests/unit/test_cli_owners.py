"""What the command takes for an engine's, and which volume it takes a name for, in a ledger without a pool."""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmthin.cli.fields import OWNER_FIELDS, USAGE_FIELDS, VOLUME_FIELDS
from dmthin.cli.listing import _owners
from dmthin.cli.output import Output
from dmthin.cli.owners import all_meant, meant, meant_to_remove, owners_of
from dmthin.docker.records import ContainerRecord, DockerRecords
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


def test_several_names_need_the_records_once(stored: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(LAYER, "mine")
    record(tmp_path)
    read: list[DockerRecords] = []
    containers = DockerRecords.containers

    def counted(records: DockerRecords) -> Iterator[ContainerRecord]:
        read.append(records)
        return containers(records)

    monkeypatch.setattr(DockerRecords, "containers", counted)
    names, owners = all_meant(store, ["web", "mine", "8c1f", "gone"])
    assert names == [LAYER, "mine", LAYER, "gone"]
    assert owners.of(LAYER)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("columns", "sort", "tabs", "as_json", "needed"),
    [
        ("", "", False, False, True),
        ("", "", True, False, False),
        ("", "", True, True, True),
        ("name,size", "", False, False, False),
        ("name,size", "", True, True, False),
        ("name,size", "engine", True, False, True),
        ("name,engine_id", "", True, False, True),
        ("+engine", "", True, False, True),
        ("+device", "", False, False, True),
        ("+device", "-size", True, False, False),
    ],
)
def test_a_table_without_engines_needs_no_records(
    stored: Made, tmp_path: Path, columns: str, sort: str, tabs: bool, as_json: bool, needed: bool
) -> None:
    store = stored(LAYER)
    record(tmp_path)
    arguments = Namespace(columns=columns, sort=sort, tabs=tabs, noheadings=False, exact=False, no_trunc=True)
    call: Any = SimpleNamespace(arguments=arguments, output=Output(as_json=as_json))
    assert bool(_owners(call, store, VOLUME_FIELDS, "name,size")) == needed


def test_the_fields_of_owners_are_known() -> None:
    for fields in (VOLUME_FIELDS, USAGE_FIELDS):
        assert {field.name for field in fields if field.name.startswith("engine")} == OWNER_FIELDS
