"""Snapshots: volumes as containerd uses them. An active one is prepared and written, then committed under a name.

Each has a key within its snapshotter. A committed one is an image, and may be the parent of others.
"""

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dmthin.errors import AlreadyExists, InUse, InvalidValue, NotFound
from dmthin.kernel import block
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.kernel.retry import retry_busy
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import FROZEN_NAMES, Kind, NewSnapshot, NewVolume, Snapshot, SnapshotKind
from dmthin.store.state.snapshot_table import SnapshotTable, volume_name
from dmthin.store.volumes.children import Children, plan_child
from dmthin.store.volumes.cleanup import Cleanup
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

Labels = Mapping[str, str]


class Snapshots:
    """The snapshots of one store, by snapshotter and key."""

    def __init__(self, ledger: Ledger, volumes: Volumes, children: Children, cleanup: Cleanup) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._children = children
        self._cleanup = cleanup
        self._table = SnapshotTable(ledger)

    def get(self, snapshotter: str, key: str) -> Snapshot:
        """Return the snapshot with that key or name. Raises NotFound."""
        if (found := self._table.find(snapshotter, key)) is None:
            raise NotFound(f"snapshot {key!r} is not there")
        return found

    def all(self, snapshotter: str) -> list[Snapshot]:
        """Return the snapshots of a snapshotter."""
        return self._table.all(snapshotter)

    def committed(self) -> list[Snapshot]:
        """Return the committed snapshots of all snapshotters."""
        return self._table.committed()

    def every(self) -> list[Snapshot]:
        """Return the snapshots of all snapshotters."""
        return self._table.every()

    def prepare(
        self,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Labels,
        *,
        size: int | None = None,
        base_size: int | None = None,
        view: bool = False,
    ) -> tuple[Snapshot, DeviceInfo]:
        """Make an active snapshot or a view of a committed one, or of an empty file system; return it and its device.

        `size` in bytes is the one asked for, `base_size` the usual one of a snapshot without a parent.
        Raises AlreadyExists (the key), NotFound (the parent), InvalidValue (the parent is not committed; a size below
        the parent's), NoDataSpace, NoMetadataSpace.
        """
        taken, below = self._table.find_both(snapshotter, key, parent)
        if taken is not None:
            raise AlreadyExists(f"the key {key!r} is that of the {taken.title}")
        snapshot = NewSnapshot(snapshotter, key, parent, labels, time.time_ns())
        name = volume_name(snapshotter, key)
        if parent:
            volume = _require_committed(parent, below).volume
            new = plan_child(name, Kind.CONTAINER, volume, size, read_only=view, snapshot=snapshot)
            made = self._children.create(new, activate=True)
        else:
            made = self._children.create_first(
                name, Kind.CONTAINER, size, base_size=base_size, activate=True, read_only=view, snapshot=snapshot
            )
        assert made.device is not None  # it was to be activated
        return snapshot.of(made.volume), made.device

    def activate(self, snapshot: Snapshot) -> DeviceInfo:
        """Return the device of an active snapshot or a view, created again if it has gone. Raises NotFound."""
        with self._volumes.locks.locked(snapshot.volume) as volume:
            return self._volumes.activate(volume)

    def ensure_size(self, snapshot: Snapshot, size: int) -> Snapshot:
        """Grow an active snapshot and its file system, mounted or not, unless it has `size` bytes; return it so.

        Raises InvalidValue for less than its parent has, and what `Volumes.grow` raises.
        """
        volume = snapshot.volume
        below = None if volume.parent is None else self._ledger.by_id(volume.parent)
        if below is not None and size < below.size:
            now = format_exact(below.size)
            raise InvalidValue(f"size {format_exact(size)} is less than the {now} that it was made with")
        if size <= volume.size:
            return snapshot
        return replace(snapshot, volume=self._volumes.grow(volume, size, or_more=True))

    def at(self, node: Path) -> Snapshot | None:
        """Return the snapshot whose block device is at `node`, None for any other file or device."""
        number = self._volumes.devices.device_id_at(node)
        found = None if number is None else self._table.of_volume(number)
        if found is None:
            return None
        try:
            info = self._volumes.info(found.volume)
        except AlreadyExists:
            return None
        return found if info is not None and info.number == block.number(node) else None

    @contextmanager
    def opened(self, snapshot: Snapshot) -> Iterator[int]:
        """Mount an active snapshot or a view outside of every namespace; the value is a descriptor of its root.

        No lock is held meanwhile. Raises NotFound (removed), Unavailable, and what mounting gives.
        """
        with self._volumes.locks.locked(snapshot.volume) as volume:
            root = self._volumes.mount_detached(volume)
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def frozen(self, snapshot: Snapshot) -> Iterator[int]:
        """Mount what a snapshot contains now, read-only and outside of every namespace, also while it is written to.

        The value is a descriptor of the root. An active snapshot gets a thin snapshot of its own for that, which is in
        state MAKING until it is removed at the end: if this process dies, recovery removes it. Raises NotFound
        (removed), NoDataSpace, NoMetadataSpace, Unavailable, and what mounting gives.
        """
        if snapshot.volume.read_only:
            with self.opened(snapshot) as root:
                yield root
            return
        name = f"{FROZEN_NAMES}{snapshot.volume.device_id}-{os.urandom(4).hex()}"
        unfinished = self._children.freeze(name, snapshot.volume)
        try:
            root = self._volumes.mount_detached_read_only(unfinished.volume)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            self._cleanup.roll_back_later(unfinished)

    def commit(self, snapshotter: str, name: str, key: str, labels: Labels, parent: str = "") -> None:
        """Commit an active snapshot as `name`; it does not change any more. Repeating a commit is fine.

        Only the ledger is written before this returns. `parent`, if given, must be the snapshot's own.
        Raises NotFound (the key), AlreadyExists (the name), InvalidValue (another parent), InUse (it is not active).
        """
        active, done = self._table.find_both(snapshotter, key, name)
        if active is None and done is not None and done.source == key:
            return
        if active is None:
            raise NotFound(f"snapshot {key!r} is not there")
        if active.kind is not SnapshotKind.ACTIVE:
            raise InUse(f"cannot commit the {active.title}", hint="only an active snapshot can be committed")
        if parent and parent != active.parent:
            raise InvalidValue(
                f"cannot commit the {active.title} on {parent!r}", hint=f"its parent is {active.parent or 'none'!r}"
            )
        if done is not None:
            raise AlreadyExists(f"the name {name!r} is that of the {done.title}")
        with self._volumes.locks.locked(active.volume) as volume:
            now = time.time_ns()
            committed = replace(volume, name=volume_name(snapshotter, name), kind=Kind.IMAGE)
            snapshot = Snapshot(committed, snapshotter, name, active.parent, labels, now, now, source=key)
            with self._ledger.transaction(f"commit {volume.name}"):
                self._ledger.require_free(committed.name)
                self._ledger.save(committed)
                self._table.save(snapshot)
        self._cleanup.deactivate_later(committed)

    def remove(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot. Its key is free when this returns; its space comes back later.

        Raises NotFound, InUse (it has children, is mounted or open; names the users).
        """
        volume = self.get(snapshotter, key).volume
        # udev and blkid open a device for a moment; a child stays.
        retry_busy(lambda: self._cleanup.remove(volume), is_final=lambda: bool(self._ledger.children(volume.device_id)))

    def relabel(self, snapshotter: str, key: str, labels: Labels, only: Collection[str] | None = None) -> Snapshot:
        """Replace a snapshot's labels, or `only` those with these keys; return the snapshot then. Raises NotFound.

        A key of `only` that has no value in `labels` is removed.
        """
        with self._ledger.transaction(f"label {key}"):
            before = self.get(snapshotter, key)
            kept = {label: value for label, value in before.labels.items() if only is not None and label not in only}
            given = {label: value for label, value in labels.items() if only is None or (label in only and value)}
            after = replace(before, labels=kept | given, updated=time.time_ns())
            self._table.save(after)
        return after

    def with_label(self, label: str, value: str, snapshotter: str, parent: str) -> Snapshot | None:
        """Return a committed snapshot with this label, preferably of this snapshotter and on that parent."""
        return self._table.with_label(label, value, snapshotter, parent)

    def adopt(self, snapshotter: str, name: str, parent: str, labels: Labels, seed: Snapshot) -> None:
        """Make a committed snapshot with the content of `seed`, on a parent of the caller's. Raises as `prepare`."""
        below = _require_committed(parent, self._table.find(snapshotter, parent)).volume if parent else None
        origin = seed.volume
        new = NewVolume(
            name=volume_name(snapshotter, name),
            kind=Kind.IMAGE,
            size=origin.size,
            file_system=origin.file_system,
            parent=below or self._ledger.base_of(origin),
            snapshot=NewSnapshot(snapshotter, name, parent, labels, time.time_ns()),
        )
        self._children.copy(new, origin)

    def save_usage(self, snapshot: Snapshot, size: int, inodes: int) -> None:
        """Keep the usage of a committed snapshot, in bytes and inodes: it does not change any more."""
        with self._ledger.transaction(f"usage {snapshot.key}", durable=False):
            now = self._table.find(snapshot.snapshotter, snapshot.key)
            if now is not None and now.volume.device_id == snapshot.volume.device_id:
                self._table.save(replace(now, bytes=size, inodes=inodes))


def _require_committed(name: str, found: Snapshot | None) -> Snapshot:
    """Return the snapshot found under a parent's name. Raises NotFound, InvalidValue (it is not committed)."""
    if found is None:
        raise NotFound(f"the parent {name!r} is not there")
    if found.kind is not SnapshotKind.COMMITTED:
        raise InvalidValue(f"the parent is the {found.title}", hint="commit it first")
    return found
