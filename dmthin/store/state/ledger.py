"""The ledger: which volume is which device id of the pool, and what is under way.

Every process and thread has its own connection; SQLite lets one write at a time.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dmthin.errors import AlreadyExists, DmthinError, InUse, KernelError, NoMetadataSpace, NotFound, TimeLimit
from dmthin.kernel import block
from dmthin.kernel.thin import MAX_DEVICE_ID
from dmthin.steps import step
from dmthin.store.state import schema
from dmthin.store.state.group_sync import GroupSync
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import SPARE_NAMES, Kind, NewVolume, State, StoreRecord, StoreState, Volume

_UNUSED_DEVICE_IDS = 1000

_STORE_COLUMNS = (
    "uuid, state, block_size, data, metadata, pool, options, generation, clean, data_size, data_target,"
    " metadata_target, metadata_size, border"
)
VOLUME_COLUMNS = "device_id, name, kind, state, size, file_system, parent, created, uses, read_only"


class Ledger:
    """The ledger of one store. Methods that change it belong inside `transaction()`."""

    def __init__(self, path: Path) -> None:
        """Open the ledger. Raises NotFound where there is none, Unavailable for a newer schema or another file."""
        self._path = path
        self._connections: dict[int, sqlite3.Connection] = {}
        """By thread. A forked child drops what is in a threading.local of the other threads, and must close none of
        their connections: the locks in SQLite are as they were at the fork, and nobody is there to release them."""
        self._writing = threading.Lock()
        self._log = GroupSync(schema.log(path))
        if not block.exists(path):
            raise NotFound(f"{path.parent} is not a store", hint="make one with: dmthin pool create")
        try:
            schema.require_current(self._connection, path)
        except sqlite3.Error as error:
            self.close()
            raise schema.failure(error, path) from None
        except DmthinError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of all threads; may be called twice."""
        while self._connections:
            _, connection = self._connections.popitem()
            connection.close()

    def remove(self) -> None:
        """Remove the ledger's files. Once the first is gone there is no store; the others hold nothing by then."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise schema.failure(error, self._path) from None
        self.close()
        for path in schema.files(self._path):
            block.remove_file(path)

    @contextmanager
    def transaction(self, name: str, *, durable: bool = True) -> Iterator[None]:
        """Everything inside, durably, or nothing; no other writer meanwhile. `name` says what for.

        Without `durable` it outlives this process but not a power cut, and costs no sync: enough for what a power cut
        ends too, such as mounts. Others see what was committed at once, before the sync, which is one for all threads
        that wait. Where the disk fails that, it is an error although the change is done.
        """
        connection = self._connection
        try:
            with self._writing:  # threads queue here: SQLite would let them sleep and look again
                if durable and self._log.has_failed:
                    self._rewrite_log()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    with step("ledger", name):
                        connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise schema.failure(error, self._path) from None
        if durable:
            self._log.wait()

    def harden(self) -> None:
        """Make durable what others have committed, who may have died before they did: to act on it outside of here."""
        self._log.wait()

    def _rewrite_log(self) -> None:
        """Bring what a failed sync may have lost to the disk by another way: into the database, and sync that."""
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise TimeLimit(f"the ledger {self._path} could not be written out again", hint="try again")
        self._log.has_failed = False

    def store(self) -> StoreRecord:
        """The store's own record. Raises NotFound while it is being made."""
        row = self._one(f"SELECT {_STORE_COLUMNS} FROM store")
        if row is None:
            raise NotFound(f"{self._path.parent} is not a store yet", hint="make one with: dmthin pool create")
        return _store_record(row)

    def save_store(self, record: StoreRecord) -> None:
        """Write the store's own record."""
        places = ", ".join("?" * 14)
        updates = ", ".join(f"{name} = excluded.{name}" for name in _STORE_COLUMNS.split(", "))
        self._connection.execute(
            f"INSERT INTO store (one, {_STORE_COLUMNS}) VALUES (1, {places}) ON CONFLICT (one) DO UPDATE SET {updates}",
            (
                record.uuid,
                record.state,
                record.block_size,
                record.data,
                record.metadata,
                record.pool,
                json.dumps(record.options),
                record.generation,
                int(record.clean),
                record.data_size,
                record.data_target,
                record.metadata_target,
                record.metadata_size,
                record.border,
            ),
        )

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a query of this schema gives."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise schema.failure(error, self._path) from None

    def write(self, statement: str, *values: object) -> None:
        """Carry out a change of this schema, inside a transaction."""
        self._connection.execute(statement, values)

    def volumes(self) -> list[Volume]:
        """Every volume, by device id."""
        return [volume_of(row) for row in self.rows(f"SELECT {VOLUME_COLUMNS} FROM volume ORDER BY device_id")]

    def unfinished(self) -> list[Volume]:
        """The volumes with a change under way, or left behind by a process that died.

        Those that were being made come first: blocks that they share with one that is removed are its own then.
        """
        query = f"SELECT {VOLUME_COLUMNS} FROM volume WHERE state <> 'ready' ORDER BY state <> 'making', device_id"
        return [volume_of(row) for row in self.rows(query)]

    def is_work_left(self) -> bool:
        """Whether there are any of `unfinished` but spares, which are kept for as long as their process lives."""
        query = "SELECT 1 FROM volume WHERE state <> 'ready' AND name NOT GLOB ? LIMIT 1"
        return self._one(query, f"{SPARE_NAMES}*") is not None

    def find(self, name: str) -> Volume | None:
        """The volume of that name, whatever its state."""
        row = self._one(f"SELECT {VOLUME_COLUMNS} FROM volume WHERE name = ?", name)
        return volume_of(row) if row else None

    def by_id(self, device_id: int) -> Volume | None:
        """The volume with that device id, whatever its state."""
        row = self._one(f"SELECT {VOLUME_COLUMNS} FROM volume WHERE device_id = ?", device_id)
        return volume_of(row) if row else None

    def ready(self, name: str, *kinds: Kind) -> Volume:
        """The volume of that name, of one of `kinds`, that is there for use. Raises NotFound."""
        volume = self.find(name)
        what = " or ".join(kinds) or "volume"
        if volume is None or volume.state is State.MAKING:
            raise NotFound(f"there is no {what} {name!r}", hint="see: dmthin list")
        if kinds and volume.kind not in kinds:
            other = " or ".join(kind.with_article for kind in kinds)
            raise NotFound(f"{name!r} is {volume.kind.with_article}, not {other}", hint="see: dmthin list")
        return volume

    def base_of(self, volume: Volume) -> Volume | None:
        """The base that a volume descends from, None if that is gone."""
        above: Volume | None = volume
        while above is not None and above.kind is not Kind.BASE:
            above = None if above.parent is None else self.by_id(above.parent)
        return above

    def children(self, device_id: int) -> list[Volume]:
        """The volumes that descend from one, but for spares and those that are being removed."""
        which = "parent = ? AND state <> 'removing' AND name NOT GLOB ?"
        query = f"SELECT {VOLUME_COLUMNS} FROM volume WHERE {which} ORDER BY name"
        return [volume_of(row) for row in self.rows(query, device_id, f"{SPARE_NAMES}*")]

    def add(self, new: NewVolume, locks: Locks) -> "Added":
        """Record a volume to be made, under a free device id whose lock this takes.

        The lock is held before the record can be seen, so nobody takes it for one that was left behind.
        Raises AlreadyExists (the name), NotFound (the parent is gone).
        """
        self.require_free(new.name)
        if (parent := new.parent) is not None:
            self.require_there(parent)
        device_id, lock = self._free_device_id(locks)
        volume = Volume(
            device_id=device_id,
            name=new.name,
            kind=new.kind,
            state=State.MAKING,
            size=new.size,
            file_system=new.file_system,
            parent=parent.device_id if parent else None,
            created=int(time.time()),
            read_only=new.read_only,
        )
        try:
            places = ", ".join("?" * 10)
            self._connection.execute(f"INSERT INTO volume ({VOLUME_COLUMNS}) VALUES ({places})", _row(volume))
        except BaseException:
            lock.release()
            raise
        return Added(volume, lock)

    def save(self, volume: Volume) -> None:
        """Write a volume's record."""
        assignments = ", ".join(f"{name} = ?" for name in VOLUME_COLUMNS.split(", "))
        self._connection.execute(
            f"UPDATE volume SET {assignments} WHERE device_id = ?", (*_row(volume), volume.device_id)
        )

    def mark(self, volume: Volume, state: State) -> Volume:
        """Write a volume's state, which is all that has changed; the volume as it is now. The name's index stays."""
        self._connection.execute("UPDATE volume SET state = ? WHERE device_id = ?", (state, volume.device_id))
        return volume.with_state(state)

    def rename(self, volume: Volume, name: str, kind: Kind) -> Volume:
        """Let a volume be known as another from now on, as if made now; the volume as it is then. Its parent stays."""
        renamed = replace(volume, name=name, kind=kind, created=int(time.time()))
        self._connection.execute(
            "UPDATE volume SET name = ?, kind = ?, created = ? WHERE device_id = ?",
            (name, kind, renamed.created, volume.device_id),
        )
        return renamed

    def count_uses(self, volume: Volume, uses: int) -> None:
        """Write how many count on a volume's mount, which is all that has changed."""
        self._connection.execute("UPDATE volume SET uses = ? WHERE device_id = ?", (uses, volume.device_id))

    def cap_uses(self, most: int) -> None:
        """Let no volume count more uses than this."""
        self._connection.execute("UPDATE volume SET uses = min(uses, ?)", (most,))

    def forget(self, volume: Volume) -> None:
        """Delete a volume's record. Records that still name it as parent get the parent's parent."""
        self._connection.execute("UPDATE volume SET parent = ? WHERE parent = ?", (volume.parent, volume.device_id))
        self._connection.execute("DELETE FROM volume WHERE device_id = ?", (volume.device_id,))

    def require_free(self, name: str) -> None:
        """Raise AlreadyExists, which says by what, if a name is in use."""
        if (taken := self.find(name)) is not None:
            user = taken.kind.with_article + ("" if taken.state is State.READY else f" ({taken.state})")
            raise AlreadyExists(f"the name {name!r} is in use by {user}", hint="choose another")

    def require_there(self, volume: Volume) -> None:
        """Raise NotFound if a volume has been removed since it was read."""
        now = self.by_id(volume.device_id)
        if now is None or now.name != volume.name or now.state is State.REMOVING:
            raise NotFound(f"the {volume.title} has been removed meanwhile")

    def require_childless(self, volume: Volume) -> None:
        """Raise InUse, which names them, if volumes descend from this one."""
        if children := self.children(volume.device_id):
            names = ", ".join(child.name for child in children[:5]) + (", ..." if len(children) > 5 else "")
            raise InUse(f"the {volume.title} has children: {names}", hint="remove those first")

    def _free_device_id(self, locks: Locks) -> tuple[int, Lock]:
        """The next device id that no record and no lock has.

        Ids are not used again: each snapshot also advances the pool's time, of which the kernel keeps 24 bits with
        every block, unchecked, and a pool beyond that gives two volumes one block.
        """
        (first,) = self._connection.execute("SELECT next_device_id FROM store").fetchone()
        for candidate in range(first, MAX_DEVICE_ID - _UNUSED_DEVICE_IDS):
            lock = locks.try_volume(candidate) if self.by_id(candidate) is None else None
            if lock is not None:
                self._connection.execute("UPDATE store SET next_device_id = ?", (candidate + 1,))
                return candidate, lock
        raise NoMetadataSpace(
            "the pool has had all the snapshots that the kernel can tell apart, 16 million",
            hint="make a new store and move the volumes there",
        )

    @property
    def _connection(self) -> sqlite3.Connection:
        thread = threading.get_ident()  # one that has ended leaves its connection to the next of this number
        if (connection := self._connections.get(thread)) is None:
            connection = self._connections[thread] = schema.connect(self._path)
        return connection

    def _one(self, query: str, *values: object) -> tuple[object, ...] | None:
        rows = self.rows(query, *values)
        return rows[0] if rows else None


class Added:
    """A volume that `Ledger.add` has recorded, and the lock that says somebody is at it."""

    def __init__(self, volume: Volume, lock: Lock) -> None:
        self.volume = volume
        self.lock = lock


def _row(volume: Volume) -> tuple[object, ...]:
    return (
        volume.device_id,
        volume.name,
        volume.kind,
        volume.state,
        volume.size,
        volume.file_system,
        volume.parent,
        volume.created,
        volume.uses,
        int(volume.read_only),
    )


def volume_of(row: tuple[object, ...]) -> Volume:
    """The volume that a row of `VOLUME_COLUMNS` describes."""
    device_id, name, kind, state, size, file_system, parent, created, uses, read_only = row
    return Volume(
        device_id=_int(device_id),
        name=str(name),
        kind=Kind(str(kind)),
        state=State(str(state)),
        size=_int(size),
        file_system=str(file_system),
        parent=None if parent is None else _int(parent),
        created=_int(created),
        uses=_int(uses),
        read_only=bool(read_only),
    )


def _store_record(row: tuple[object, ...]) -> StoreRecord:
    uuid, state, block_size, data, metadata, pool, options, generation, clean, size, *growth = row
    data_target, metadata_target, metadata_size, border = growth
    return StoreRecord(
        uuid=str(uuid),
        state=StoreState(str(state)),
        block_size=_int(block_size),
        data=str(data),
        metadata=str(metadata),
        pool=str(pool),
        options=tuple(json.loads(str(options))),
        generation=_int(generation),
        clean=bool(clean),
        data_size=_int(size),
        data_target=None if data_target is None else _int(data_target),
        metadata_target=None if metadata_target is None else _int(metadata_target),
        metadata_size=_int(metadata_size),
        border=_int(border),
    )


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise KernelError(f"the ledger holds {value!r} where a number belongs")
    return value
