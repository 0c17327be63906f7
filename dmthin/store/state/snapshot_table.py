"""The ledger's table of containerd's snapshots: snapshotter, key, parent and labels of a volume.

A row belongs to a volume in state READY, and is written and deleted in that volume's transactions.
"""

import json

from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, Snapshot, Volume
from dmthin.store.state.rows import VOLUME_COLUMNS, Row, integer, optional_integer, volume_of

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
        """Return the snapshot with that key, or that name if it is committed; None if there is none."""
        found = self._ledger.rows(f"{_SELECT} WHERE snapshotter = ? AND key = ?", snapshotter, key)
        return _snapshot(found[0]) if found else None

    def find_both(self, snapshotter: str, first: str, second: str) -> tuple[Snapshot | None, Snapshot | None]:
        """Return what `find` returns for two keys, by one query."""
        rows = self._ledger.rows(f"{_SELECT} WHERE snapshotter = ? AND key IN (?, ?)", snapshotter, first, second)
        found = {snapshot.key: snapshot for snapshot in map(_snapshot, rows)}
        return found.get(first), found.get(second)

    def of_volume(self, device_id: int) -> Snapshot | None:
        """Return the snapshot whose volume has that device id, None if there is none."""
        found = self._ledger.rows(f"{_SELECT} WHERE device_id = ?", device_id)
        return _snapshot(found[0]) if found else None

    def all(self, snapshotter: str) -> list[Snapshot]:
        """Return the snapshots of a snapshotter, in the order in which they were made or committed."""
        query = f"{_SELECT} WHERE snapshotter = ? ORDER BY snapshot.created, device_id"
        return [_snapshot(row) for row in self._ledger.rows(query, snapshotter)]

    def committed(self) -> list[Snapshot]:
        """Return the committed snapshots of all snapshotters, in the order of their commits."""
        query = f"{_SELECT} WHERE kind = ? ORDER BY snapshot.created, device_id"
        return [_snapshot(row) for row in self._ledger.rows(query, Kind.IMAGE)]

    def every(self) -> list[Snapshot]:
        """Return the snapshots of all snapshotters."""
        return [_snapshot(row) for row in self._ledger.rows(f"{_SELECT} ORDER BY device_id")]

    def with_label(self, label: str, value: str, snapshotter: str, parent: str) -> Snapshot | None:
        """Return a committed snapshot of any snapshotter with this label, None if there is none.

        One of this snapshotter on that parent is preferred.
        """
        best = "snapshotter = ? AND snapshot.parent = ? DESC"
        query = f"{_SELECT} WHERE kind = ? AND json_extract(labels, ?) = ? ORDER BY {best} LIMIT 1"
        found = self._ledger.rows(query, Kind.IMAGE, f'$."{label}"', value, snapshotter, parent)
        return _snapshot(found[0]) if found else None

    def add(self, snapshot: Snapshot) -> None:
        """Insert the row of a snapshot whose volume is recorded."""
        places = ", ".join("?" * 10)
        self._ledger.execute(f"INSERT INTO snapshot (device_id, {_COLUMNS}) VALUES ({places})", *_row(snapshot))

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot's row. The volume's row is `Ledger.save`'s."""
        assignments = ", ".join(f"{name} = ?" for name in _COLUMNS.split(", "))
        first, *values = _row(snapshot)
        self._ledger.execute(f"UPDATE snapshot SET {assignments} WHERE device_id = ?", *values, first)

    def forget(self, volume: Volume) -> None:
        """Delete a volume's row, if there is one. The key is free then."""
        self._ledger.execute("DELETE FROM snapshot WHERE device_id = ?", volume.device_id)


def volume_name(snapshotter: str, key: str) -> str:
    """Return the name of a snapshot's volume. An administrator's volume cannot have such a name."""
    return f"@snapshot/{snapshotter}/{key}"


def _row(snapshot: Snapshot) -> Row:
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


def _snapshot(row: Row) -> Snapshot:
    snapshotter, key, parent, labels, created, updated, source, size, inodes = row[_WIDTH:]
    return Snapshot(
        volume_of(row[:_WIDTH]),
        str(snapshotter),
        str(key),
        str(parent),
        json.loads(str(labels)),
        integer(created),
        integer(updated),
        str(source),
        optional_integer(size),
        optional_integer(inodes),
    )
