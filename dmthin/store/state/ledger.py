"""The ledger: which volume has which device id of the pool, and which operations are in progress."""

import time
from dataclasses import dataclass, replace

from dmthin.errors import AlreadyExists, InUse, NoMetadataSpace, NotFound
from dmthin.kernel.thin import MAX_DEVICE_ID
from dmthin.store.state.database import Database
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import FROZEN_NAMES, SPARE_NAMES, Kind, NewVolume, State, StoreRecord, Volume
from dmthin.store.state.rows import (
    STORE_COLUMNS,
    VOLUME_COLUMNS,
    Row,
    integer,
    store_of,
    store_row,
    volume_of,
    volume_row,
)

_UNUSED_DEVICE_IDS = 1000
"""Device ids at the end of the kernel's range that are never given out, for repairs by hand."""


@dataclass(frozen=True, slots=True)
class Added:
    """A volume that `Ledger.add` has recorded, and its lock, which marks the intent as being worked on."""

    volume: Volume
    lock: Lock


class Ledger(Database):
    """The ledger of one store. Methods that change it belong inside `transaction()`."""

    def store(self) -> StoreRecord:
        """Return the store's own record. Raises NotFound while the store is being made."""
        row = self._one(f"SELECT {STORE_COLUMNS} FROM store")
        if row is None:
            raise NotFound(f"{self.path.parent} is not a store yet", hint="make one with: dmthin pool create")
        return store_of(row)

    def save_store(self, record: StoreRecord) -> None:
        """Write the store's own record."""
        places = ", ".join("?" * 14)
        updates = ", ".join(f"{name} = excluded.{name}" for name in STORE_COLUMNS.split(", "))
        self.execute(
            f"INSERT INTO store (one, {STORE_COLUMNS}) VALUES (1, {places}) ON CONFLICT (one) DO UPDATE SET {updates}",
            *store_row(record),
        )

    def volumes(self) -> list[Volume]:
        """Return every volume, in the order of device ids."""
        return [volume_of(row) for row in self.rows(f"SELECT {VOLUME_COLUMNS} FROM volume ORDER BY device_id")]

    def unfinished(self) -> list[Volume]:
        """Return the volumes with an operation in progress or interrupted.

        Those in state MAKING come first: once they are gone, blocks that they shared with a volume in state REMOVING
        are exclusive to that one, so that its discard frees them.
        """
        query = f"SELECT {VOLUME_COLUMNS} FROM volume WHERE state <> 'ready' ORDER BY state <> 'making', device_id"
        return [volume_of(row) for row in self.rows(query)]

    def is_work_left(self) -> bool:
        """Return whether `unfinished` has volumes other than spares, which a daemon keeps in state MAKING."""
        query = "SELECT 1 FROM volume WHERE state <> 'ready' AND name NOT GLOB ? LIMIT 1"
        return self._one(query, f"{SPARE_NAMES}*") is not None

    def find(self, name: str) -> Volume | None:
        """Return the volume of that name in any state, None if there is none."""
        row = self._one(f"SELECT {VOLUME_COLUMNS} FROM volume WHERE name = ?", name)
        return volume_of(row) if row else None

    def by_id(self, device_id: int) -> Volume | None:
        """Return the volume with that device id in any state, None if there is none."""
        row = self._one(f"SELECT {VOLUME_COLUMNS} FROM volume WHERE device_id = ?", device_id)
        return volume_of(row) if row else None

    def ready(self, name: str, *kinds: Kind) -> Volume:
        """Return the volume of that name, of one of `kinds`, once it has been made. Raises NotFound."""
        volume = self.find(name)
        what = " or ".join(kinds) or "volume"
        if volume is None or volume.state is State.MAKING:
            raise NotFound(f"there is no {what} {name!r}", hint="see: dmthin list")
        if kinds and volume.kind not in kinds:
            other = " or ".join(kind.with_article for kind in kinds)
            raise NotFound(f"{name!r} is {volume.kind.with_article}, not {other}", hint="see: dmthin list")
        return volume

    def base_of(self, volume: Volume) -> Volume | None:
        """Return the base that a volume descends from, None if that has been removed."""
        above: Volume | None = volume
        while above is not None and above.kind is not Kind.BASE:
            above = None if above.parent is None else self.by_id(above.parent)
        return above

    def children(self, device_id: int) -> list[Volume]:
        """Return the volumes whose parent has that device id.

        Spares, frozen snapshots and volumes in state REMOVING are not among them.
        """
        which = "parent = ? AND state <> 'removing' AND name NOT GLOB ? AND name NOT GLOB ?"
        query = f"SELECT {VOLUME_COLUMNS} FROM volume WHERE {which} ORDER BY name"
        return [volume_of(row) for row in self.rows(query, device_id, f"{SPARE_NAMES}*", f"{FROZEN_NAMES}*")]

    def next_device_id(self) -> int:
        """Return the device id that `add` takes next, unless another process is faster.

        Ids are not used again: each snapshot also advances the pool's time, of which the kernel keeps 24 bits with
        every block, unchecked (dm-thin-metadata.c), and a pool beyond that gives two volumes one block.
        Raises NoMetadataSpace.
        """
        ((first,),) = self.rows("SELECT next_device_id FROM store")
        candidate = integer(first)
        while self.by_id(candidate) is not None:
            candidate += 1
        if candidate >= MAX_DEVICE_ID - _UNUSED_DEVICE_IDS:
            raise NoMetadataSpace(
                "the pool has used all 16 million device ids", hint="make a new store and move the volumes there"
            )
        return candidate

    def add(self, new: NewVolume, locks: Locks) -> Added:
        """Record a volume in state MAKING, under a free device id whose lock this takes.

        The lock is taken before the record can be seen, so that no process takes it for an interrupted operation.
        Raises AlreadyExists (the name), NotFound (the parent has been removed), NoMetadataSpace (no device id is left).
        """
        self.require_free(new.name)
        if (parent := new.parent) is not None:
            self.require_there(parent)
        device_id, lock = self._take_device_id(locks)
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
            self.execute(f"INSERT INTO volume ({VOLUME_COLUMNS}) VALUES ({places})", *volume_row(volume))
        except BaseException:
            lock.release()
            raise
        return Added(volume, lock)

    def save(self, volume: Volume) -> None:
        """Write the whole record of a volume that is recorded."""
        assignments = ", ".join(f"{name} = ?" for name in VOLUME_COLUMNS.split(", "))
        self.execute(f"UPDATE volume SET {assignments} WHERE device_id = ?", *volume_row(volume), volume.device_id)

    def mark(self, volume: Volume, state: State) -> Volume:
        """Write the state alone, which leaves the index of names untouched; return the volume with that state."""
        self.execute("UPDATE volume SET state = ? WHERE device_id = ?", state, volume.device_id)
        return volume.with_state(state)

    def rename(self, volume: Volume, name: str, kind: Kind) -> Volume:
        """Give a volume another name and kind, created now; return it as it is then. The parent stays."""
        renamed = replace(volume, name=name, kind=kind, created=int(time.time()))
        self.execute(
            "UPDATE volume SET name = ?, kind = ?, created = ? WHERE device_id = ?",
            name,
            kind,
            renamed.created,
            volume.device_id,
        )
        return renamed

    def count_uses(self, volume: Volume, uses: int) -> None:
        """Write the number of references to a volume's mount, and nothing else."""
        self.execute("UPDATE volume SET uses = ? WHERE device_id = ?", uses, volume.device_id)

    def cap_uses(self, most: int) -> None:
        """Reduce the references of every volume to at most this many."""
        self.execute("UPDATE volume SET uses = min(uses, ?)", most)

    def forget(self, volume: Volume) -> None:
        """Delete a volume's record. Its children become those of its parent."""
        self.execute("UPDATE volume SET parent = ? WHERE parent = ?", volume.parent, volume.device_id)
        self.execute("DELETE FROM volume WHERE device_id = ?", volume.device_id)

    def require_available(self, name: str) -> None:
        """Raise AlreadyExists for a name that no transaction could take.

        A name in state MAKING may belong to a process that died: the transaction recovers it before it decides.
        """
        taken = self.find(name)
        if taken is None or taken.state is not State.MAKING:
            self.require_free(name)

    def require_free(self, name: str) -> None:
        """Raise AlreadyExists, which names the kind of its owner, if a name is taken."""
        if (taken := self.find(name)) is not None:
            user = taken.kind.with_article + ("" if taken.state is State.READY else f" ({taken.state})")
            raise AlreadyExists(f"the name {name!r} is in use by {user}", hint="choose another")

    def require_there(self, volume: Volume) -> None:
        """Raise NotFound if a volume has been removed since it was read from the ledger."""
        now = self.by_id(volume.device_id)
        if now is None or now.name != volume.name or now.state is State.REMOVING:
            raise NotFound(f"the {volume.title} has been removed meanwhile")

    def require_childless(self, volume: Volume) -> None:
        """Raise InUse, which names up to five of them, if a volume has children."""
        if children := self.children(volume.device_id):
            names = ", ".join(child.name for child in children[:5]) + (", ..." if len(children) > 5 else "")
            raise InUse(f"the {volume.title} has children: {names}", hint="remove those first")

    def _take_device_id(self, locks: Locks) -> tuple[int, Lock]:
        """Return the next device id that no record and no lock holder has, and its lock."""
        while True:
            candidate = self.next_device_id()
            lock = locks.try_volume(candidate)
            self.execute("UPDATE store SET next_device_id = ?", candidate + 1)
            if lock is not None:
                return candidate, lock

    def _one(self, query: str, *values: object) -> Row | None:
        rows = self.rows(query, *values)
        return rows[0] if rows else None
