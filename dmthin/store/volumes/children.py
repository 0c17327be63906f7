"""Children of volumes: snapshots of a size of their own, read-only ones, and those that a spare becomes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dmthin.errors import InvalidValue, NoDataSpace, NoMetadataSpace
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool import filesystem
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, NewSnapshot, NewVolume, State, Volume
from dmthin.store.volumes.background import Queue
from dmthin.store.volumes.bases import Bases
from dmthin.store.volumes.creation import Created, Unfinished
from dmthin.store.volumes.spares import Spares
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact, volume_size

_Made = TypeVar("_Made")


class Children:
    """Makes children of the volumes of one store. `queue` is drained where space is short: it holds removals."""

    def __init__(
        self,
        ledger: Ledger,
        volumes: Volumes,
        bases: Bases,
        spares: Spares,
        options: StorageOptions,
        queue: Queue,
    ) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._bases = bases
        self._spares = spares
        self._options = options
        self._queue = queue

    def create(self, new: NewVolume, *, activate: bool = False) -> Created:
        """Make a child as `plan_child` has checked it, its file system grown where it is larger than its parent.

        All of it is made, or nothing. Raises AlreadyExists (the name), NotFound (the parent has been removed),
        NoDataSpace and NoMetadataSpace (once removals in progress have not helped).
        """
        return self._with_space(partial(self._create, new, activate=activate))

    def create_first(
        self,
        name: str,
        kind: Kind,
        size: int | None = None,
        *,
        base_size: int | None = None,
        activate: bool = False,
        read_only: bool = False,
        snapshot: NewSnapshot | None = None,
    ) -> Created:
        """Make a volume without a parent: a child of a base, of dm.basesize unless `size` in bytes is given.

        With a `base_size`, a larger volume is made by growing one of that size, without a base of its own.
        Raises what `create` does, and InvalidValue.
        """
        self._ledger.require_available(name)
        with self._bases.lock():
            base = self._base(min(base_size, size or base_size) if base_size else size)
            new = plan_child(name, kind, base, size, read_only=read_only, snapshot=snapshot)
            return self.create(new, activate=activate)

    def copy(self, new: NewVolume, origin: Volume) -> None:
        """Make a volume with the content of `origin`, which descends from `new.parent`. Raises what `create` does."""
        self._with_space(partial(self._copy, new, origin))

    def freeze(self, name: str, origin: Volume) -> Unfinished:
        """Begin an active snapshot of what a volume contains now, for its caller to roll back. Raises as `create`."""
        return self._with_space(partial(self._freeze, name, origin))

    def prepare_base(self) -> None:
        """Make the base of first volumes if there is none, so that no request waits for mkfs."""
        with self._bases.lock():
            self._base(None)

    def _with_space(self, make: Callable[[], _Made]) -> _Made:
        """Return what `make` returns, called again once the queue is drained if space was short.

        No lock that a queued removal may wait for is held meanwhile: at most the bases', which no queued work takes.
        """
        try:
            return make()
        except (NoDataSpace, NoMetadataSpace):
            if not self._queue.drain():
                raise
            return make()

    def _copy(self, new: NewVolume, origin: Volume) -> None:
        with self._volumes.locks.unchanged(origin):
            self._volumes.creation.make(new, origin=origin)

    def _freeze(self, name: str, origin: Volume) -> Unfinished:
        with self._volumes.locks.locked(origin) as volume:
            new = NewVolume(name, Kind.CONTAINER, volume.size, volume.file_system, volume)
            return self._volumes.creation.begin(new, activate=True)

    def _base(self, size: int | None) -> Volume:
        options = self._options
        return self._bases.ensure(options.file_system, size or options.base_size, options.mkfs_arguments)

    def _create(self, new: NewVolume, *, activate: bool) -> Created:
        parent = new.parent
        assert parent is not None
        with self._volumes.locks.unchanged(parent):
            if new.size == parent.size and not new.read_only:
                made = self._spares.hand_out(new) if activate else None
                return made or self._volumes.creation.make(new, activate=activate)
            with self._volumes.creation.making(new) as volume:
                if new.size > parent.size:
                    writable = replace(volume, read_only=False)
                    self._volumes.mounts.require_growth(writable, new.size)
                    self._volumes.mounts.fill_device(writable)
                device = self._activate_for_mount(volume) if activate else None
            return Created(volume.with_state(State.READY), device)

    def _activate_for_mount(self, volume: Volume) -> DeviceInfo:
        """Activate a volume. If it is read-only and its origin was not unmounted cleanly, replay its journal first."""
        mounts = self._volumes.mounts
        info = mounts.activate(volume)
        if not volume.read_only or filesystem.by_name(volume.file_system).is_clean(Path(info.node)):
            return info
        mounts.deactivate(volume)
        with mounts.mounted(replace(volume, read_only=False)):
            pass
        return mounts.activate(volume)


def plan_child(
    name: str,
    kind: Kind,
    parent: Volume,
    size: int | None = None,
    *,
    read_only: bool = False,
    snapshot: NewSnapshot | None = None,
) -> NewVolume:
    """Return the child to be made of a volume, checked. `size` in bytes is rounded up; the default is the parent's.

    Raises InvalidValue for a size below the parent's, or one that the file system cannot have.
    """
    if size is not None:
        size = volume_size(size)
        if size < parent.size:
            raise InvalidValue(
                f"size {format_exact(size)} is less than the {format_exact(parent.size)} of the {parent.title}",
                hint="a volume is never smaller than what it was made from",
            )
        filesystem.by_name(parent.file_system).require_size(size)
    return NewVolume(name, kind, size or parent.size, parent.file_system, parent, read_only, snapshot)
