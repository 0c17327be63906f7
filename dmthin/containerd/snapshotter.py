"""One containerd snapshotter on a store: labels, sizes, mounts. Blocking; to be called from threads.

The semantics are specified by containerd's core/snapshots/snapshotter.go (github.com/containerd/containerd).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd import filters
from dmthin.containerd.docker_containers import DockerContainers
from dmthin.containerd.usage import UsageCounter
from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue, NotFound
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool import filesystem
from dmthin.store.snapshots import Labels, Snapshots
from dmthin.store.state.model import Snapshot, SnapshotKind
from dmthin.store.store import Store
from dmthin.units import format_exact, parse_size, volume_size

logger = logging.getLogger(__name__)

REFERENCE = "containerd.io/snapshot.ref"
"""The label with the chain id of a layer: of the one to be unpacked in Prepare, and of a committed snapshot of it."""

MAX_SIZE = "containerd.io/snapshot/max-size"
OWN_SIZE = "containerd.io/snapshot/dmthin.size"
"""Labels with the size of a snapshot: containerd's, in bytes, and dmthin's, with a unit, which has priority."""

_MAX_KEY = 64 << 10


@dataclass(frozen=True, slots=True)
class MountSpec:
    """A mount for containerd to make: file system type, device, and options."""

    type: str
    source: str
    options: tuple[str, ...]


class Snapshotter:
    """The snapshots of one snapshotter name. `base_size` is the size in bytes of snapshots without a parent.

    With `containers`, those of a dockerd, its containers get the sizes that they were created with.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        usage: UsageCounter,
        base_size: int,
        containers: DockerContainers | None = None,
    ) -> None:
        self.name = name
        self._containers = containers
        self._store = store
        self._usage = usage
        self._base_size = base_size

    @property
    def _snapshots(self) -> Snapshots:
        return self._store.snapshots

    def prepare(self, key: str, parent: str, labels: Labels, *, view: bool = False) -> MountSpec:
        """Create an active snapshot, or a view, and return its mount.

        Raise InvalidValue, and what `Snapshots.prepare` raises. Raise AlreadyExists also if the store has the layer of
        the label REFERENCE: then it has been published as a committed snapshot with that label, which containerd
        looks up instead of unpacking the layer (remote snapshots, containerd's docs/remote-snapshotter.md).
        """
        _require_key("key", key)
        size = _size(labels)
        reference = labels.get(REFERENCE, "")
        if reference and not view and self._publish(key, parent, labels, reference):
            raise AlreadyExists(f"the layer {reference} exists already")
        snapshot, info = self._snapshots.prepare(
            self.name, key, parent, labels, size=size, base_size=self._base_size, view=view
        )
        logger.info("%s: prepared %s on %s", self.name, snapshot.title, parent or "no parent")
        return self._mount(snapshot, info)

    def mounts(self, key: str) -> MountSpec:
        """Return the mount of an active snapshot or a view.

        An active snapshot of a dockerd container is first grown to the size in the container's record.
        Raise NotFound, InUse for a committed snapshot, InvalidValue for a size that the container cannot have, and what
        `Snapshots.ensure_size` raises.
        """
        snapshot = self._snapshots.get(self.name, key)
        if snapshot.kind is SnapshotKind.COMMITTED:
            raise InUse(f"the {snapshot.title} has no mount", hint="prepare a snapshot or a view on it")
        if self._containers is not None and snapshot.kind is SnapshotKind.ACTIVE:
            snapshot = self._sized(snapshot, self._containers)
        return self._mount(snapshot, self._snapshots.activate(snapshot))

    def commit(self, name: str, key: str, labels: Labels, parent: str) -> None:
        """Commit an active snapshot. Raise InvalidValue, and what `Snapshots.commit` raises."""
        _require_key("name", name)
        self._snapshots.commit(self.name, name, key, labels, parent)
        logger.info("%s: committed %r as %r", self.name, key, name)

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raise NotFound, or InUse for any other failure, which containerd's GC tolerates."""
        try:
            self._snapshots.remove(self.name, key)
        except NotFound:
            raise
        except DmthinError as error:
            raise InUse(f"cannot remove snapshot {key!r}: {error.message}", hint=error.hint) from None
        logger.info("%s: removed %r", self.name, key)

    def stat(self, key: str) -> Snapshot:
        """Return the record of a snapshot. Raise NotFound."""
        return self._snapshots.get(self.name, key)

    def update(self, key: str, labels: Labels, paths: Sequence[str]) -> Snapshot:
        """Replace all labels, or those that the field mask `paths` names as `labels.KEY`; return the new record.

        Raise NotFound, or InvalidValue for another field.
        """
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidValue(f"the field {path!r} cannot be updated", hint="only labels can be updated")

        whole = not paths or "labels" in paths
        only = None if whole else [path.removeprefix("labels.") for path in paths]
        return self._snapshots.relabel(self.name, key, labels, only)

    def list(self, texts: Sequence[str]) -> Iterator[Snapshot]:
        """Return the snapshots that match any of the filters, all of them without filters. Raise InvalidValue."""
        matches = filters.parse_all(texts)
        return (snapshot for snapshot in self._snapshots.all(self.name) if matches(_fields(snapshot)))

    def at(self, node: Path) -> Snapshot | None:
        """Return this snapshotter's snapshot whose block device is at `node`, None if there is none."""
        snapshot = self._snapshots.at(node)
        return snapshot if snapshot is not None and snapshot.snapshotter == self.name else None

    def opened(self, snapshot: Snapshot) -> AbstractContextManager[int]:
        """Mount an active snapshot for the block, which gets a descriptor of its root. See `Snapshots.opened`."""
        return self._snapshots.opened(snapshot)

    def frozen(self, snapshot: Snapshot) -> AbstractContextManager[int]:
        """Mount what a snapshot contains now for the block, read-only. See `Snapshots.frozen`."""
        return self._snapshots.frozen(snapshot)

    def usage(self, key: str) -> tuple[int, int]:
        """Return the bytes and inodes of a snapshot that are not its parent's. Raise NotFound."""
        return self._usage.of(self._snapshots.get(self.name, key))

    def cleanup(self) -> None:
        """Finish removals: their space has been reclaimed when this returns."""
        self._store.spares.drop_orphans()
        self._store.cleanup.drain()
        self._store.recover()

    def _publish(self, key: str, parent: str, labels: Labels, reference: str) -> bool:
        """Publish a layer that the store has under a name of this snapshotter. Return whether the store has it.

        A layer of another size than it would get here does not count: snapshots on it would inherit that size.
        """
        source = self._snapshots.with_label(REFERENCE, reference, self.name, parent)
        if source is None:
            return False
        if (source.snapshotter, source.parent) != (self.name, parent):
            default = self._snapshots.get(self.name, parent).volume.size if parent else self._base_size
            if source.volume.size != (_size(labels) or default):
                return False
            self._snapshots.adopt(self.name, f"{key} {reference}", parent, labels, source)
            logger.info("%s: published the layer %s as a copy of %r", self.name, reference, source.key)
        return True

    def _sized(self, snapshot: Snapshot, containers: DockerContainers) -> Snapshot:
        """Return a snapshot with the size that its container was created with. Raise as `mounts` does."""
        try:
            if (size := containers.size(snapshot.key)) is None:
                return snapshot
            sized = self._snapshots.ensure_size(snapshot, size)
        except InvalidValue as error:
            raise InvalidValue(
                f"dockerd's container {snapshot.key.rpartition('/')[2]}: {error.message}",
                hint="remove the container, and create it with another --storage-opt",
            ) from None
        if sized is not snapshot:
            logger.info("%s: grew the %s to %s", self.name, sized.title, format_exact(sized.volume.size))
        return sized

    def _mount(self, snapshot: Snapshot, info: DeviceInfo) -> MountSpec:
        volume = snapshot.volume
        own = filesystem.by_name(volume.file_system).mount_options
        options = filesystem.join_options("ro" if volume.read_only else "", own, self._store.options.mount_options)
        return MountSpec(volume.file_system, info.node, tuple(filter(None, options.split(","))))


def _fields(snapshot: Snapshot) -> filters.Adaptor:
    """Return an adaptor for the fields that a filter may use (containerd's core/metadata/adaptors.go)."""
    values = {"name": snapshot.key, "parent": snapshot.parent, "kind": str(snapshot.kind)}

    def field(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return snapshot.labels.get(".".join(path[1:]))
        return values.get(path[0]) if len(path) == 1 else None

    return field


def _require_key(what: str, key: str) -> None:
    """Raise InvalidValue if the key or name is empty or too long."""
    if not key:
        raise InvalidValue(f"the {what} is empty")
    if len(key) > _MAX_KEY:
        raise InvalidValue(f"the {what} has {len(key)} characters", hint=f"use at most {_MAX_KEY}")


def _size(labels: Mapping[str, str]) -> int | None:
    """Return the size in bytes that a label requests, rounded up to whole blocks, None without one.

    Raise InvalidValue, which names the label.
    """
    for label in (OWN_SIZE, MAX_SIZE):
        if (text := labels.get(label)) is None:
            continue
        if label == MAX_SIZE and not text.isdecimal():
            raise InvalidValue(
                f"the label {label}={text!r} is not a number of bytes", hint=f"use digits only, or {OWN_SIZE}=20G"
            )
        try:
            size = parse_size(text)
        except InvalidValue as error:
            raise InvalidValue(f"the label {label}={text!r}: {error}") from None
        if size <= 0:
            raise InvalidValue(
                f"the label {label}={text!r} is not a positive size", hint="omit it for the default size"
            )
        return volume_size(size)
    return None
