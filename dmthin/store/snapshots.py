"""Snapshots by key, as containerd keeps them: prepared, written, committed under a name, and then parents of others.

A key or name belongs to one snapshotter of the store; no snapshotter sees another's, nor bases, nor what others made.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from dmthin.errors import AlreadyExists, InUse, InvalidValue, NotFound
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.store.layers import Layers
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, Snapshot, SnapshotKind, Volume
from dmthin.store.state.snapshot_table import SnapshotTable, volume_name
from dmthin.store.volumes.volumes import Volumes

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.05

Labels = Mapping[str, str]


class Snapshots:
    """The snapshots of one store by snapshotter and key."""

    def __init__(self, ledger: Ledger, volumes: Volumes, layers: Layers) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._layers = layers
        self._keys = SnapshotTable(ledger)

    def get(self, snapshotter: str, key: str) -> Snapshot:
        """The snapshot with that key or name. Raises NotFound."""
        if (found := self._keys.find(snapshotter, key)) is None:
            raise NotFound(f"snapshot {key!r} is not there")
        return found

    def all(self, snapshotter: str) -> list[Snapshot]:
        """The snapshots of a snapshotter, as they are at this moment."""
        return self._keys.all(snapshotter)

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
        """Make an active snapshot or a view of a committed one, or of an empty file system; its device is there.

        `size` in bytes is what was asked for, `base_size` what one without parent has otherwise.
        Raises AlreadyExists (the key), NotFound (the parent), InvalidValue (it is not committed; the size is less than
        its own), NoDataSpace, NoMetadataSpace.
        """
        taken, below = self._keys.find_both(snapshotter, key, parent)
        if taken is not None:
            raise AlreadyExists(f"the key {key!r} is that of the {taken.title}")
        describe = _describer(snapshotter, key, parent, labels)
        create = partial(self._layers.create_first, size=size, base_size=base_size)
        if parent:
            create = partial(self._layers.create, parent=_parent(parent, below).volume, size=size)
        made = create(
            volume_name(snapshotter, key),
            Kind.CONTAINER,
            activate=True,
            read_only=view,
            record=lambda volume: self._keys.add(describe(volume)),
        )
        assert made.device is not None  # since it was to be activated
        return describe(made.volume), made.device

    def activate(self, snapshot: Snapshot) -> DeviceInfo:
        """The device of an active snapshot or a view, made if it is not there."""
        with self._volumes.locked(snapshot.volume) as volume:
            return self._volumes.activate(volume)

    def commit(self, snapshotter: str, name: str, key: str, labels: Labels, parent: str = "") -> None:
        """Let an active snapshot be known as `name`, unchanging from now on. To repeat it is fine.

        Only the ledger is written before this returns. `parent`, if given, is to be the snapshot's own.
        Raises NotFound (the key), AlreadyExists (the name), InvalidValue (another parent), InUse (it is not active).
        """
        active, done = self._keys.find_both(snapshotter, key, name)
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
        with self._volumes.locked(active.volume) as volume:
            now = time.time_ns()
            committed = replace(volume, name=volume_name(snapshotter, name), kind=Kind.IMAGE)
            snapshot = Snapshot(committed, snapshotter, name, active.parent, labels, now, now, source=key)
            with self._ledger.transaction(f"commit {volume.name}"):
                self._ledger.require_free(committed.name)
                self._ledger.save(committed)
                self._keys.save(snapshot)
        self._layers.let_linger(committed)

    def remove(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot; its key is free at once, its space comes back behind the caller.

        Raises NotFound, InUse (it has children, is mounted or open; says by whom).
        """
        volume = self.get(snapshotter, key).volume
        for attempt in range(_ATTEMPTS):
            try:
                self._layers.remove_unused(volume)
            except InUse:
                # udev and the like open a device for a moment; who has mounted it stays.
                if attempt + 1 == _ATTEMPTS or self._ledger.children(volume.device_id):
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def relabel(self, snapshotter: str, key: str, change: Callable[[Labels], Labels]) -> Snapshot:
        """Give a snapshot the labels that `change` makes of its own. Raises NotFound."""
        with self._ledger.transaction(f"label {key}"):
            before = self.get(snapshotter, key)
            after = replace(before, labels=change(before.labels), updated=time.time_ns())
            self._keys.save(after)
        return after

    def held(self, label: str, value: str, snapshotter: str, parent: str) -> Snapshot | None:
        """A committed snapshot of any snapshotter that has this label; if there is one, of this and on that parent."""
        return self._keys.held(label, value, snapshotter, parent)

    def adopt(self, snapshotter: str, name: str, parent: str, labels: Labels, seed: Snapshot) -> None:
        """Make a committed snapshot that holds what `seed` holds, on a parent of the caller's. Raises as `prepare`."""
        below = _parent(parent, self._keys.find(snapshotter, parent)).volume if parent else None
        describe = _describer(snapshotter, name, parent, labels)
        self._layers.copy(
            volume_name(snapshotter, name),
            Kind.IMAGE,
            seed.volume,
            below,
            record=lambda volume: self._keys.add(describe(volume)),
        )

    def count(self, snapshot: Snapshot, size: int, inodes: int) -> None:
        """Keep what a committed snapshot has and its parent has not, which changes no more."""
        with self._ledger.transaction(f"count {snapshot.key}", durable=False):
            now = self._keys.find(snapshot.snapshotter, snapshot.key)
            if now is not None and now.volume.device_id == snapshot.volume.device_id:
                self._keys.save(replace(now, bytes=size, inodes=inodes))


def _describer(snapshotter: str, key: str, parent: str, labels: Labels) -> Callable[[Volume], Snapshot]:
    """What makes the record of a snapshot that is made now, once its volume is known."""
    now = time.time_ns()
    return lambda volume: Snapshot(volume, snapshotter, key, parent, labels, now, now)


def _parent(name: str, found: Snapshot | None) -> Snapshot:
    """The snapshot that was found under a parent's name. Raises NotFound, InvalidValue."""
    if found is None:
        raise NotFound(f"the parent {name!r} is not there")
    if found.kind is not SnapshotKind.COMMITTED:
        raise InvalidValue(f"the parent is the {found.title}", hint="commit it first")
    return found
