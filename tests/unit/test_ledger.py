"""The ledger by itself: durable, versioned, one writer at a time."""

import sqlite3
import threading
from pathlib import Path

import pytest

from dmthin.errors import AlreadyExists, InUse, NoMetadataSpace, NotFound, Unavailable
from dmthin.store import schema
from dmthin.store.ledger import Ledger
from dmthin.store.locks import Locks, make_lock_file
from dmthin.store.model import Kind, NewVolume, State, StoreRecord, StoreState, Volume, new_uuid
from dmthin.store.schema import SCHEMA_VERSION


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    make_lock_file(tmp_path / "lock")
    return Locks(tmp_path / "lock")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    schema.make(tmp_path / "ledger.db")
    ledger = Ledger(tmp_path / "ledger.db")
    with ledger.transaction("store"):
        ledger.save_store(record())
    return ledger


def record() -> StoreRecord:
    return StoreRecord(new_uuid(), StoreState.READY, 65536, "data", "metadata", "", ("dm.fs=xfs",), 1, False)


def add(ledger: Ledger, locks: Locks, name: str, kind: Kind = Kind.IMAGE, parent: Volume | None = None) -> Volume:
    with ledger.transaction("add"):
        added = ledger.add(NewVolume(name, kind, 1 << 30, "ext4", parent), locks)
        ledger.save(ready := added.volume.with_state(State.READY))
    added.lock.release()
    return ready


def test_what_was_committed_is_there_for_another_connection(ledger: Ledger, locks: Locks, tmp_path: Path) -> None:
    volume = add(ledger, locks, "image")
    other = Ledger(tmp_path / "ledger.db")
    assert other.volumes() == [volume]
    assert other.store() == ledger.store()
    assert other.store().options == ("dm.fs=xfs",)


def test_a_failed_transaction_leaves_nothing(ledger: Ledger, locks: Locks) -> None:
    with pytest.raises(RuntimeError), ledger.transaction("add"):
        ledger.add(NewVolume("image", Kind.IMAGE, 1 << 30, "ext4", None), locks).lock.release()
        raise RuntimeError
    assert ledger.volumes() == []


def test_device_ids_are_not_used_again_soon_nor_while_locked(ledger: Ledger, locks: Locks) -> None:
    first = add(ledger, locks, "a")
    with ledger.transaction("forget"):
        ledger.forget(first)
    with locks.volume(1):
        assert add(ledger, locks, "b").device_id == 2


def test_device_ids_end_before_the_pools_time_does(ledger: Ledger, locks: Locks, tmp_path: Path) -> None:
    add(ledger, locks, "zero")
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE store SET next_device_id = 16776214")
    assert add(ledger, locks, "last").device_id == 16776214
    with pytest.raises(NoMetadataSpace, match="make a new store"):
        add(ledger, locks, "one more")


def test_names_children_and_kinds(ledger: Ledger, locks: Locks) -> None:
    image = add(ledger, locks, "image")
    container = add(ledger, locks, "web", Kind.CONTAINER, image)
    with pytest.raises(AlreadyExists, match="'web' is in use by a container"), ledger.transaction("add"):
        ledger.add(NewVolume("web", Kind.IMAGE, 1, "ext4", None), locks)
    with pytest.raises(InUse, match="image image has children: web"):
        ledger.require_childless(image)
    with pytest.raises(NotFound, match="'web' is a container, not an image"):
        ledger.ready("web", Kind.IMAGE)
    with ledger.transaction("removing"):
        ledger.save(container.with_state(State.REMOVING))
    ledger.require_childless(image)
    with ledger.transaction("forget"):
        ledger.forget(image)
    assert ledger.unfinished()[0].parent is None


def test_two_writers_wait_for_each_other(ledger: Ledger, locks: Locks, tmp_path: Path) -> None:
    def work(prefix: str) -> None:
        own = Ledger(tmp_path / "ledger.db")
        for number in range(20):
            add(own, locks, f"{prefix}{number}")
        own.close()

    threads = [threading.Thread(target=work, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(volume.device_id for volume in ledger.volumes()) == list(range(60))


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a store: make one with: dmthin pool create"):
        Ledger(tmp_path / "ledger.db")
    (tmp_path / "ledger.db").write_text("not a database at all" * 100)
    with pytest.raises(NotFound, match="is not a ledger of dmthin"):
        Ledger(tmp_path / "ledger.db")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(NotFound, match="is not a ledger of dmthin"):
        Ledger(other)


def test_a_newer_schema_is_refused_untouched(ledger: Ledger, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Unavailable, match=rf"newer dmthin \(schema {SCHEMA_VERSION + 1}.*upgrade dmthin"):
        Ledger(tmp_path / "ledger.db")


def test_an_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    schema.make(path)
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, "ALTER TABLE volume ADD COLUMN extra TEXT"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    Ledger(path).close()
    with sqlite3.connect(path) as connection:
        assert "extra" in [row[1] for row in connection.execute("PRAGMA table_info(volume)")]
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)


def test_a_ledger_that_was_removed_is_gone_with_its_files(ledger: Ledger, tmp_path: Path) -> None:
    ledger.remove()
    assert [path.name for path in tmp_path.iterdir()] == []
