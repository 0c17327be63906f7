"""Snapshots as container engines use them: any volume may have children, and is mounted for as long as it is counted.

An engine asks for a volume's mount and lets go of it any number of times, and expects the count to survive us: so the
ledger keeps it. It counts only while the kernel has the mount.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from dmthin.errors import InUse, InvalidValue, NoDataSpace, NoMetadataSpace, NotFound
from dmthin.kernel import detached, holders, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool import filesystem
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, NewVolume, State, Volume
from dmthin.store.volumes.background import InlineQueue, Later
from dmthin.store.volumes.bases import Bases
from dmthin.store.volumes.change import Made, Record, no_record
from dmthin.store.volumes.spares import Spares
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

logger = logging.getLogger(__name__)

_REMOVAL_SECONDS = 0.25
"""What is left of a removal waits for this long, so that it does not slow its own caller's next calls down."""

_LINGER_SECONDS = 2.0
"""How long a device stays that nobody has open: each activation costs three events of udev's."""

_LINGER_ATTEMPTS = 30
"""How often a device that lingers is looked at again because somebody is changing its volume just then."""

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.05


class Layers:
    """The volumes of one store as an engine sees them."""

    def __init__(self, layout: Layout, ledger: Ledger, volumes: Volumes, bases: Bases, options: StorageOptions) -> None:
        self._layout = layout
        self._ledger = ledger
        self._volumes = volumes
        self._bases = bases
        self._options = options
        self.behind: Later = InlineQueue()
        """Who does what callers need not wait for; a daemon has a thread for it."""
        self.spares = Spares(ledger, volumes)

    def create(
        self,
        name: str,
        kind: Kind,
        parent: Volume,
        size: int | None = None,
        *,
        activate: bool = False,
        read_only: bool = False,
        record: Record = no_record,
    ) -> Made:
        """Make a snapshot of a volume, its file system grown where `size` in bytes is more than the parent's.

        `activate` makes its block device, on which a `read_only` one takes no write; `record` adds to its record. All
        of it is made or nothing.
        Raises AlreadyExists, NotFound (the parent is gone), InvalidValue (a size below the parent's), NoDataSpace and
        NoMetadataSpace (once removals that are under way have not helped).
        """
        create = partial(self._create, name, kind, parent, size, activate=activate, read_only=read_only, record=record)
        try:
            return create()
        except (NoDataSpace, NoMetadataSpace):
            if not self.behind.drain():
                raise
            return create()

    def create_first(
        self,
        name: str,
        kind: Kind,
        size: int | None = None,
        *,
        base_size: int | None = None,
        activate: bool = False,
        read_only: bool = False,
        record: Record = no_record,
    ) -> Made:
        """Make a volume without a parent: a snapshot of a golden base, of dm.basesize unless `size` in bytes is given.

        With a `base_size` a larger volume is made by growing one of that size, without a base of its own.
        Raises what `create` does.
        """
        taken = self._ledger.find(name)
        if taken is None or taken.state is not State.MAKING:  # else the next change may find that its maker has died
            self._ledger.require_free(name)
        with self._bases.kept():
            base = self._base(min(base_size, size or base_size) if base_size else size)
            return self.create(name, kind, base, size, activate=activate, read_only=read_only, record=record)

    def prepare_base(self) -> None:
        """Make the golden base of first volumes now, if it is not there, so that none of them waits for mkfs."""
        with self._bases.kept():
            self._base(None)

    def remove(self, name: str) -> None:
        """Remove a volume whatever uses it; fine if there is none. What is busy goes with its last user.

        Where dm.use_deferred_deletion forbids that, raises InUse, which names the users. Its snapshots stay, its name
        is free at once, and its space comes back behind the caller.
        """
        if (volume := self._ledger.find(name)) is None or volume.state is State.REMOVING:
            return
        with suppress(NotFound):
            if not self._options.deferred_deletion:
                self._unmount(volume)
            finish = self._volumes.begin_removal(volume, force=True, orphaning=True)
            self.behind.later(_REMOVAL_SECONDS, partial(self._finish_removal, volume, finish))

    def remove_unused(self, volume: Volume) -> None:
        """Remove a volume that is not mounted, not open and has no children. Raises InUse, which says why not.

        The name is free at once, and the space comes back behind the caller.
        """
        finish = self._volumes.begin_removal(volume)
        self.behind.later(_REMOVAL_SECONDS, partial(self._finish_removal, volume, finish))

    def copy(self, name: str, kind: Kind, origin: Volume, parent: Volume | None, *, record: Record = no_record) -> None:
        """Make a volume that holds what `origin` holds and descends, for the ledger, from `parent` or from its base.

        Raises what `create` does.
        """
        parent = parent or self._ledger.base_of(origin)
        with self._volumes.unchanged(origin):
            new = NewVolume(name, kind, origin.size, origin.file_system, parent)
            self._volumes.make(new, origin=origin, record=record)

    def acquire(self, name: str, options: str = "") -> Path:
        """Mount a volume, or count one use more of its mount; the folder is the same each time.

        `options` are those of mount(8), for a mount that is not there yet. Raises NotFound, NoDataSpace, Unavailable.
        """
        volume = self._ledger.ready(name)
        place = self._layout.mount_point(name)
        with self._volumes.locked(volume) as volume:
            uses = volume.uses
            if not self._is_mounted(volume, place):
                self._volumes.mount_locked(volume, place, options)
                uses = 0
            self._count(volume, uses + 1)
        return place

    def release(self, name: str) -> None:
        """Count one use less, and unmount what nobody uses; fine if there is no such volume or mount.

        A busy mount is tried again for a moment, then detached; a busy device goes with its last user. One that is not
        stays for a moment, behind the caller: an engine often asks for the same volume again.
        """
        if (volume := self._ledger.find(name)) is None:
            return
        idle = False
        with suppress(NotFound), self._volumes.locked(volume) as volume:
            mounted = self._is_mounted(volume, self._layout.mount_point(name))
            left = max(volume.uses - 1, 0) if mounted else 0
            if left != volume.uses:
                self._count(volume, left)
            if mounted and not left:
                self._unmount_locked(volume)
                idle = self._is_idle(volume)
                if not idle:
                    self._deactivate(volume)
        if idle:
            self.let_linger(volume)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """A descriptor of a volume's root (O_PATH), for our own work: mounted where nobody sees it, and not counted.

        No lock is held meanwhile, so others may mount, snapshot or remove the volume.
        """
        volume = self._ledger.ready(name)
        place = self._layout.mount_point(name)
        with self._volumes.locked(volume) as volume:
            # A copy of the mount has its options too, of which a file system has one set only.
            mounted = self._is_mounted(volume, place)
            root = detached.clone(place) if mounted else self._volumes.mount_detached(volume)
        try:
            yield root
        finally:
            os.close(root)
            self.let_linger(volume)

    def deactivate_idle(self, *kinds: Kind) -> None:
        """Remove the devices that nobody has open: a process that died may have left them for `behind` to remove."""
        for volume in self._ledger.volumes():
            if volume.kind in kinds and volume.state is State.READY and self._is_idle(volume):
                self.let_linger(volume)

    def let_linger(self, volume: Volume) -> None:
        """Deactivate a volume in a moment, if it is not mounted then."""
        self.behind.later(_LINGER_SECONDS, partial(self._deactivate_unmounted, volume))

    def forget_lost_uses(self) -> None:
        """Let each mount count one use at most: the engine that counted has ended, and counts anew from what it finds.

        Docker's own drivers begin with 1 for a mount that is there (its RefCounter).
        """
        with self._ledger.transaction("cap uses", durable=False):
            self._ledger.cap_uses(1)

    def unmount_all(self) -> None:
        """Unmount every volume, whoever counts on it."""
        for volume in self._ledger.volumes():
            if volume.state is not State.MAKING:  # whose lock a daemon may hold for days
                with suppress(NotFound):
                    self._unmount(volume)

    def mounted(self) -> list[str]:
        """The names of the volumes that are mounted for somebody."""
        return [entry.target for entry in mount.under(self._layout.mounts) if entry.target != str(self._layout.mounts)]

    def _create(
        self,
        name: str,
        kind: Kind,
        parent: Volume,
        size: int | None,
        *,
        activate: bool,
        read_only: bool,
        record: Record,
    ) -> Made:
        if size is not None and size < parent.size:
            raise InvalidValue(
                f"size {format_exact(size)} is less than the {format_exact(parent.size)} of the {parent.title}",
                hint="a volume is never smaller than what it was made from",
            )
        if size is not None:
            filesystem.by_name(parent.file_system).require_size(size)
        new = NewVolume(name, kind, size or parent.size, parent.file_system, parent, read_only)
        with self._volumes.unchanged(parent):
            if new.size == parent.size and not read_only:
                made = self.spares.hand_out(new, record) if activate else None
                return made or self._volumes.make(new, activate=activate, record=record)
            with self._volumes.making(new, record=record) as volume:
                if new.size > parent.size:
                    self._volumes.fill_device(replace(volume, read_only=False))
                device = self._activate_to_be_mounted(volume) if activate else None
            return Made(volume.with_state(State.READY), device)

    def _activate_to_be_mounted(self, volume: Volume) -> DeviceInfo:
        """A volume's device; a read-only one has had its journal replayed if its origin was not unmounted cleanly."""
        info = self._volumes.activate(volume)
        if not volume.read_only or filesystem.by_name(volume.file_system).is_clean(Path(info.node)):
            return info
        self._volumes.deactivate(volume)
        with self._volumes.mounted_for_work(replace(volume, read_only=False)):
            pass
        return self._volumes.activate(volume)

    def _base(self, size: int | None) -> Volume:
        options = self._options
        return self._bases.ensure(options.file_system, size or options.base_size, options.mkfs_arguments)

    def _unmount(self, volume: Volume) -> None:
        with self._volumes.locked(volume) as volume:
            self._count(volume, 0)
            self._unmount_locked(volume)
            self._deactivate(volume)

    def _unmount_locked(self, volume: Volume) -> None:
        info = self._volumes.info(volume)
        if info is None:
            return
        for entry in reversed(mount.of_device(info.dev)):
            self._unmount_patiently(volume, info, Path(entry.target))
        self._volumes.drop_mount_point(volume)

    def _is_idle(self, volume: Volume) -> bool:
        """Whether a volume has a device, which nobody has open."""
        info = self._volumes.info(volume)
        return info is not None and not info.open_count

    def _deactivate(self, volume: Volume) -> None:
        if not self._volumes.deactivate(volume) and (left := self._volumes.info(volume)):
            logger.warning("the device of the %s is still in use by %s", volume.title, _users(left))

    def _deactivate_unmounted(self, volume: Volume, attempts: int = _LINGER_ATTEMPTS) -> None:
        # A removal has the lock until its rest is done, which may be ours to do next: waiting would be for ever.
        with suppress(NotFound), self._volumes.locked_if_free(volume) as now:
            if now is None:
                if attempts > 1:
                    again = partial(self._deactivate_unmounted, volume, attempts - 1)
                    self.behind.later(_LINGER_SECONDS, again)
                return
            info = self._volumes.info(now)
            if info is not None and not mount.of_device(info.dev):
                self._volumes.deactivate(now)

    def _finish_removal(self, volume: Volume, finish: Callable[[], None]) -> None:
        self.spares.drop(volume)
        finish()
        if (left := self._ledger.by_id(volume.device_id)) and (info := self._volumes.info(left)):
            logger.warning("the removed %s is still in use by %s", volume.title, _users(info))

    def _unmount_patiently(self, volume: Volume, info: DeviceInfo, target: Path) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                mount.unmount(target)
            except InUse:
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(_PAUSE_SECONDS)
            else:
                return
        logger.warning("the %s was unmounted while in use by %s", volume.title, _users(info))
        mount.unmount(target, lazy=True)

    def _is_mounted(self, volume: Volume, place: Path) -> bool:
        info = self._volumes.info(volume)
        try:
            return info is not None and place.stat().st_dev == info.dev
        except OSError:
            return False

    def _count(self, volume: Volume, uses: int) -> None:
        with self._ledger.transaction(f"use {volume.name}", durable=False):
            self._ledger.count_uses(volume, uses)


def _users(info: DeviceInfo) -> str:
    return holders.describe(info.dev) or "something in the kernel"
