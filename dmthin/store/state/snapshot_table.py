"""The part of the ledger that is containerd's: under which key, with which labels, a volume is known to a snapshotter.

Each belongs to a volume that is READY, in whose transactions it comes and goes.
"""

import json

from dmthin.store.state.ledger import VOLUME_COLUMNS, Ledger, volume_of
from dmthin.store.state.model import Kind, Snapshot, Volume

_COLUMNS = "snapshotter, key, parent, labels, created, updated, source, bytes, inodes"
_OF_VOLUME = ", ".join(f"volume.{name}" for name in VOLUME_COLUMNS.split(", "))
_OF_SNAPSHOT = ", ".join(f"snapshot.{name}" for name in _COLUMNS.split(", "))
_SELECT = f"SELECT {_OF_VOLUME}, {_OF_SNAPSHOT} FROM snapshot JOIN volume USING (device_id)"
_WIDTH = len(VOLUME_COLUMNS.split(", "))


class SnapshotTable:
    """The snapshots of one ledger. Methods that change it belong inside `Ledger.transaction()`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def find(self, snapshotter: str, key: str) -> Snapshot | None:
        """The snapshot with that key, or that name if it is committed."""
        found = self._ledger.rows(f"{_SELECT} WHERE snapshotter = ? AND key = ?", snapshotter, key)
        return _snapshot(found[0]) if found else None

    def find_both(self, snapshotter: str, first: str, second: str) -> tuple[Snapshot | None, Snapshot | None]:
        """What `find` tells of two keys, by one query."""
        rows = self._ledger.rows(f"{_SELECT} WHERE snapshotter = ? AND key IN (?, ?)", snapshotter, first, second)
        found = {snapshot.key: snapshot for snapshot in map(_snapshot, rows)}
        return found.get(first), found.get(second)

    def all(self, snapshotter: str) -> list[Snapshot]:
        """The snapshots of a snapshotter, in the order in which they were made or committed."""
        query = f"{_SELECT} WHERE snapshotter = ? ORDER BY snapshot.created, device_id"
        return [_snapshot(row) for row in self._ledger.rows(query, snapshotter)]

    def held(self, label: str, value: str, snapshotter: str, parent: str) -> Snapshot | None:
        """A committed snapshot of any snapshotter that has this label; if there is one, of this and on that parent."""
        best = "snapshotter = ? AND snapshot.parent = ? DESC"
        query = f"{_SELECT} WHERE kind = ? AND json_extract(labels, ?) = ? ORDER BY {best} LIMIT 1"
        found = self._ledger.rows(query, Kind.IMAGE, f'$."{label}"', value, snapshotter, parent)
        return _snapshot(found[0]) if found else None

    def add(self, snapshot: Snapshot) -> None:
        """Record a snapshot of a volume that is recorded."""
        places = ", ".join("?" * 10)
        self._ledger.write(f"INSERT INTO snapshot (device_id, {_COLUMNS}) VALUES ({places})", *_row(snapshot))

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot's record; its volume's is written by itself."""
        assignments = ", ".join(f"{name} = ?" for name in _COLUMNS.split(", "))
        first, *values = _row(snapshot)
        self._ledger.write(f"UPDATE snapshot SET {assignments} WHERE device_id = ?", *values, first)

    def forget(self, volume: Volume) -> None:
        """Delete the record, if there is one: the key is free."""
        self._ledger.write("DELETE FROM snapshot WHERE device_id = ?", volume.device_id)


def volume_name(snapshotter: str, key: str) -> str:
    """The name of a snapshot's volume, which no administrator's volume has."""
    return f"@snapshot/{snapshotter}/{key}"


def _row(snapshot: Snapshot) -> tuple[object, ...]:
    return (
        snapshot.volume.device_id,
        snapshot.snapshotter,
        snapshot.key,
        snapshot.parent,
        json.dumps(dict(snapshot.labels)),
        snapshot.created,
        snapshot.updated,
        snapshot.source,
        snapshot.bytes,
        snapshot.inodes,
    )


def _snapshot(row: tuple[object, ...]) -> Snapshot:
    snapshotter, key, parent, labels, created, updated, source, size, inodes = row[_WIDTH:]
    assert isinstance(created, int)
    assert isinstance(updated, int)
    assert size is None or isinstance(size, int)
    assert inodes is None or isinstance(inodes, int)
    return Snapshot(
        volume_of(row[:_WIDTH]),
        str(snapshotter),
        str(key),
        str(parent),
        json.loads(str(labels)),
        created,
        updated,
        str(source),
        size,
        inodes,
    )
