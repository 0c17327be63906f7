"""One snapshotter of containerd's on a store: its labels, its sizes, its mounts. Blocks; to be called from threads.

The rules are those of containerd's core/snapshots/snapshotter.go (github.com/containerd/containerd).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dmthin.containerd import filters
from dmthin.containerd.usage import UsageCounter
from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue, NotFound
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool import filesystem
from dmthin.store.snapshots import Labels, Snapshots
from dmthin.store.state.model import Snapshot, SnapshotKind
from dmthin.store.store import Store
from dmthin.units import parse_size

logger = logging.getLogger(__name__)

REFERENCE = "containerd.io/snapshot.ref"
"""The label with the chain id of a layer that is about to be unpacked, and of a committed one that holds it."""

MAX_SIZE = "containerd.io/snapshot/max-size"
OWN_SIZE = "containerd.io/snapshot/dmthin.size"

_MAX_KEY = 64 << 10


@dataclass(frozen=True, slots=True)
class Mount:
    """What containerd gives to mount(8): a device, and options beside the defaults."""

    type: str
    source: str
    options: tuple[str, ...]


class Snapshotter:
    """The snapshots under one snapshotter name. `base_size` in bytes is that of snapshots without a parent."""

    def __init__(self, name: str, store: Store, usage: UsageCounter, base_size: int) -> None:
        self.name = name
        self._store = store
        self._usage = usage
        self._base_size = base_size

    @property
    def _snapshots(self) -> Snapshots:
        return self._store.snapshots

    def prepare(self, key: str, parent: str, labels: Labels, *, view: bool = False) -> Mount:
        """Make an active snapshot, or a view; its mount.

        Raises what `Snapshots.prepare` does; AlreadyExists too for a layer that the store holds: it is there under
        another name then, with the label REFERENCE, and containerd looks for it.
        """
        _require_key("key", key)
        size = _size(labels)
        reference = labels.get(REFERENCE, "")
        if reference and not view and self._publish(key, parent, labels, reference):
            raise AlreadyExists(f"the layer {reference} is here already")
        snapshot, info = self._snapshots.prepare(
            self.name, key, parent, labels, size=size, base_size=self._base_size, view=view
        )
        logger.info("%s: prepared the %s on %s", self.name, snapshot.title, parent or "nothing")
        return self._mount(snapshot, info)

    def mounts(self, key: str) -> Mount:
        """The mount of an active snapshot or a view. Raises NotFound, InUse (it is committed)."""
        snapshot = self._snapshots.get(self.name, key)
        if snapshot.kind is SnapshotKind.COMMITTED:
            raise InUse(f"the {snapshot.title} has no mount", hint="prepare one on it, or a view")
        return self._mount(snapshot, self._snapshots.activate(snapshot))

    def commit(self, name: str, key: str, labels: Labels, parent: str) -> None:
        """Commit an active snapshot. Raises what `Snapshots.commit` does."""
        _require_key("name", name)
        self._snapshots.commit(self.name, name, key, labels, parent)
        logger.info("%s: committed %r as %r", self.name, key, name)

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound; InUse for whatever else is in the way, which containerd's GC survives."""
        try:
            self._snapshots.remove(self.name, key)
        except NotFound:
            raise
        except DmthinError as error:
            raise InUse(f"cannot remove snapshot {key!r}: {error.message}", hint=error.hint) from None
        logger.info("%s: removed %r", self.name, key)

    def stat(self, key: str) -> Snapshot:
        """What is known of a snapshot. Raises NotFound."""
        return self._snapshots.get(self.name, key)

    def update(self, key: str, labels: Labels, paths: Sequence[str]) -> Snapshot:
        """Change labels: all, or those that a field mask names as `labels.KEY`. Raises NotFound, InvalidValue."""
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidValue(f"the field {path!r} cannot be updated", hint="only labels can")

        whole = not paths or "labels" in paths
        only = None if whole else [path.removeprefix("labels.") for path in paths]
        return self._snapshots.relabel(self.name, key, labels, only)

    def list(self, texts: Sequence[str]) -> Iterator[Snapshot]:
        """The snapshots that one of the filters takes, all without one. Raises InvalidValue."""
        wanted = filters.parse_all(texts)
        return (snapshot for snapshot in self._snapshots.all(self.name) if wanted(_fields(snapshot)))

    def usage(self, key: str) -> tuple[int, int]:
        """Bytes and inodes that a snapshot has and its parent has not."""
        return self._usage.of(self._snapshots.get(self.name, key))

    def cleanup(self) -> None:
        """Return once the space of what was removed is back."""
        self._store.spares.drop_orphans()
        self._store.cleanup.drain()
        self._store.recover()

    def _publish(self, key: str, parent: str, labels: Labels, reference: str) -> bool:
        """Let a layer that the store holds be found under a name of this snapshotter; False if there is none.

        One of another size than it would have here is none: what is made on it later would have that size too.
        """
        seed = self._snapshots.with_label(REFERENCE, reference, self.name, parent)
        if seed is None:
            return False
        if (seed.snapshotter, seed.parent) != (self.name, parent):
            usual = self._snapshots.get(self.name, parent).volume.size if parent else self._base_size
            if seed.volume.size != (_size(labels) or usual):
                return False
            self._snapshots.adopt(self.name, f"{key} {reference}", parent, labels, seed)
            logger.info("%s: gave the layer %s from %r, which is here", self.name, reference, seed.key)
        return True

    def _mount(self, snapshot: Snapshot, info: DeviceInfo) -> Mount:
        volume = snapshot.volume
        own = filesystem.by_name(volume.file_system).mount_options
        options = filesystem.join_options("ro" if volume.read_only else "", own, self._store.options.mount_options)
        return Mount(volume.file_system, info.node, tuple(filter(None, options.split(","))))


def _fields(snapshot: Snapshot) -> filters.Adaptor:
    """The fields that a filter may name (containerd's core/metadata/adaptors.go)."""
    values = {"name": snapshot.key, "parent": snapshot.parent, "kind": str(snapshot.kind)}

    def field(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return snapshot.labels.get(".".join(path[1:]))
        return values.get(path[0]) if len(path) == 1 else None

    return field


def _require_key(what: str, key: str) -> None:
    if not key:
        raise InvalidValue(f"the {what} is empty")
    if len(key) > _MAX_KEY:
        raise InvalidValue(f"the {what} has {len(key)} characters", hint=f"use at most {_MAX_KEY}")


def _size(labels: Mapping[str, str]) -> int | None:
    """The size in bytes that labels ask for. Raises InvalidValue, which names the label."""
    for label in (OWN_SIZE, MAX_SIZE):
        if (text := labels.get(label)) is None:
            continue
        if label == MAX_SIZE and not text.isdecimal():
            raise InvalidValue(f"the label {label}={text!r} is no number of bytes")
        try:
            size = parse_size(text)
        except InvalidValue as error:
            raise InvalidValue(f"the label {label}={text!r}: {error}") from None
        if size <= 0:
            raise InvalidValue(f"the label {label}={text!r} is no size")
        return size
    return None
