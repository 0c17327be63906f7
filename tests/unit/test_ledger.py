"""The ledger by itself: durable, versioned, one writer at a time."""

import errno
import os
import resource
import shutil
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    NeedsRepair,
    NoMetadataSpace,
    NotFound,
    Unavailable,
)
from dmthin.kernel import block
from dmthin.store.state import schema
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks, make_lock_file
from dmthin.store.state.model import Kind, NewVolume, State, StoreRecord, StoreState, Volume, new_uuid
from dmthin.store.state.schema import SCHEMA_VERSION
from enginelib.waiting import until
from tests.support import processes


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


class Disk:
    """What a power cut would leave of a ledger: its files as they were at the last sync of its log."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder = folder
        self._copies = copies
        self._newest = copies
        self.syncs = 0

    def sync(self, path: Path) -> None:
        """Takes the place of `block.sync_data`."""
        self.syncs += 1
        assert path == self._folder / "ledger.db-wal"
        copy = self._copies / str(self.syncs)  # apart, since others may be reading the one before
        copy.mkdir(parents=True)
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(self._folder / name, copy / name)
        self._newest = copy

    def names(self) -> list[str]:
        """The volumes of what is left."""
        left = Ledger(self._newest / "ledger.db")
        names = [volume.name for volume in left.volumes()]
        left.close()
        return names


@pytest.fixture
def disk(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path, tmp_path / "left")
    monkeypatch.setattr(block, "sync_data", disk.sync)
    return disk


def test_what_a_power_cut_leaves(ledger: Ledger, locks: Locks, disk: Disk) -> None:
    image = add(ledger, locks, "image")
    assert disk.names() == ["image"]
    with ledger.transaction("forget", durable=False):
        ledger.forget(image)
    assert ledger.volumes() == []
    assert disk.syncs == 1
    assert disk.names() == ["image"]
    add(ledger, locks, "other")
    assert disk.names() == ["other"]


class CountingLock:
    """A lock that counts how many have asked for it."""

    def __init__(self) -> None:
        self.arrived = 0
        self._counting = threading.Lock()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._counting:
            self.arrived += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_commits_of_many_threads_share_a_sync(
    ledger: Ledger, locks: Locks, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who commits during a sync waits for the next one, which is that of all who do."""
    first, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        if not first.is_set():
            first.set()
            go_on.wait()
        disk.sync(path)

    monkeypatch.setattr(block, "sync_data", slow)
    durable: list[str] = []

    def work(name: str) -> None:
        add(ledger, locks, name)
        assert name in disk.names()
        durable.append(name)

    disk_lock = ledger._log._disk = CountingLock()  # type: ignore[assignment]
    names = [f"v{number}" for number in range(10)]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    threads[0].start()
    first.wait()
    for thread in threads[1:]:
        thread.start()
    until(lambda: disk_lock.arrived == 10)
    assert len(ledger.volumes()) == 10  # committed, and seen, but none of them durable
    assert durable == []
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(durable) == names
    assert disk.syncs == 2


def test_a_sync_that_fails_is_an_error_of_each_who_waited(
    ledger: Ledger, locks: Locks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(KernelError, match=r"cannot write .*ledger\.db-wal out: Input/output error"):
            add(ledger, locks, "image")
    add(ledger, locks, "other")
    # Not the log alone, whose pages the failed sync may have lost: all of it is in the database now, but for "other".
    with closing(sqlite3.connect(f"file:{tmp_path}/ledger.db?immutable=1", uri=True)) as alone:
        assert alone.execute("SELECT name FROM volume").fetchall() == [("image",)]


def test_a_ledger_that_lost_its_log_in_a_copy_has_it_again(ledger: Ledger, locks: Locks, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "ledger.db"
    copy.parent.mkdir()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    add(Ledger(copy), locks, "image")


def test_a_fork_closes_no_connection_of_another_thread(ledger: Ledger) -> None:
    """They share locks in memory, which some thread may have had just then: a guard would wait for them for ever."""
    done = threading.Event()

    def use() -> None:
        ledger.volumes()
        done.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(ledger._connections) == 5)

    def look() -> None:
        assert len(ledger._connections) == 5
        assert all(connection.total_changes >= 0 for connection in ledger._connections.values())

    status = processes.run(look)
    done.set()
    for thread in threads:
        thread.join()
    assert status == 0


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


def test_a_ledger_that_was_lost_is_not_a_store_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(NotFound, match="is not a store"):
        Ledger(tmp_path / "ledger.db")
    make_lock_file(tmp_path / "lock")
    with pytest.raises(
        NeedsRepair, match=r"the ledger .*ledger\.db is missing, though the pool's data are there: restore"
    ):
        Ledger(tmp_path / "ledger.db")


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


def folder_of(tmp_path: Path, length: int) -> Path:
    """Make a folder whose path has that many bytes."""
    folder = tmp_path
    while (left := length - len(os.fsencode(folder)) - 1) > 0:
        folder /= "d" * (left if left <= 200 else min(200, left - 2))
    folder.mkdir(parents=True)
    assert len(os.fsencode(folder)) == length
    return folder


def test_the_longest_path_that_sqlite_opens(tmp_path: Path) -> None:
    path = folder_of(tmp_path, 504 - len("/ledger.db.new")) / "ledger.db"
    schema.make(path)
    ledger = Ledger(path)
    assert ledger.volumes() == []
    ledger.close()
    path = folder_of(tmp_path, 505 - len("/ledger.db.new")) / "ledger.db"
    with pytest.raises(InvalidValue, match=r"too long: its ledger's has 505 bytes, and SQLite takes 504: .*--root"):
        schema.make(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("free", range(5))
def test_a_ledger_that_few_descriptors_are_left_for(ledger: Ledger, tmp_path: Path, free: int) -> None:
    """SQLite says of this, as of much else, that it is unable to open the database file."""

    def open_with_few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for fd in taken[:free]:
            os.close(fd)
        try:
            Ledger(tmp_path / "ledger.db").store()
        except DmthinError as error:
            assert "as many open files as its limit allows (40): raise it" in str(error), error

    assert processes.run(open_with_few_descriptors) == 0
