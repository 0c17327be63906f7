"""Layers: volumes as dockerd uses them. Any volume may have children, and is mounted while there are references to it.

dockerd takes and returns references to a volume's mount any number of times, and expects their count to survive a
restart of dmthin: so the ledger keeps it. It is valid only while the kernel has the mount.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.errors import InUse, NotFound
from dmthin.kernel import detached, holders, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.kernel.retry import retry_busy
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, State, Volume
from dmthin.store.volumes.children import Children, plan_child
from dmthin.store.volumes.cleanup import Cleanup
from dmthin.store.volumes.volumes import Volumes

logger = logging.getLogger(__name__)


class Layers:
    """The layers of one store."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        volumes: Volumes,
        children: Children,
        cleanup: Cleanup,
        options: StorageOptions,
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._volumes = volumes
        self._children = children
        self._cleanup = cleanup
        self._options = options

    def create(self, name: str, kind: Kind, parent: Volume, size: int | None = None) -> Volume:
        """Make a layer on another; `size` in bytes may be more than the parent's.

        Raises AlreadyExists (the name), NotFound (the parent has been removed), InvalidValue (a size below the
        parent's), NoDataSpace, NoMetadataSpace.
        """
        return self._children.create(plan_child(name, kind, parent, size)).volume

    def create_first(self, name: str, kind: Kind, size: int | None = None) -> Volume:
        """Make a layer without a parent, of dm.basesize unless `size` in bytes is given. Raises what `create` does."""
        return self._children.create_first(name, kind, size).volume

    def prepare_base(self) -> None:
        """Make the base of first layers if there is none, so that no request waits for mkfs."""
        self._children.prepare_base()

    def remove(self, name: str) -> None:
        """Remove a layer even if it is in use; fine if there is none. Its children stay, and its name is free.

        Its space comes back later; the last user's end removes what is still open. Where dm.use_deferred_deletion
        forbids that, raises InUse, which names the users.
        """
        if (volume := self._ledger.find(name)) is None or volume.state is State.REMOVING:
            return
        with suppress(NotFound):
            if not self._options.deferred_deletion:
                self._unmount(volume)
            pending = self._volumes.removal.begin(volume, force=True, orphan=True)
            self._cleanup.finish_removal(volume, pending)

    def acquire(self, name: str, options: str = "") -> Path:
        """Take a reference to a layer's mount, mounted if need be; return its folder, the same each time.

        `options` are those of mount(8), for a new mount. Raises NotFound, NoDataSpace, Unavailable.
        """
        volume = self._ledger.ready(name)
        place = self._layout.mount_point(name)
        with self._volumes.locks.locked(volume) as volume:
            uses = volume.uses
            if not self._is_mounted(volume, place):
                self._volumes.mount_locked(volume, place, options)
                uses = 0
            self._count(volume, uses + 1)
        return place

    def release(self, name: str) -> None:
        """Return a reference; the last one unmounts. Fine if there is no such layer or mount.

        A busy mount is tried again for a moment, then detached; a busy device is left to its last user. An idle device
        stays for a moment: an engine often uses the same layer again.
        """
        if (volume := self._ledger.find(name)) is None:
            return
        idle = False
        with suppress(NotFound), self._volumes.locks.locked(volume) as volume:
            mounted = self._is_mounted(volume, self._layout.mount_point(name))
            left = max(volume.uses - 1, 0) if mounted else 0
            if left != volume.uses:
                self._count(volume, left)
            if mounted and not left:
                self._unmount_locked(volume)
                idle = self._cleanup.is_idle(volume)
                if not idle:
                    self._deactivate(volume)
        if idle:
            self._cleanup.deactivate_later(volume)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Mount a layer detached, without a reference; the value is a descriptor of its root (O_PATH).

        No lock is held meanwhile, so the layer may be mounted, snapshotted or removed. Raises NotFound, Unavailable.
        """
        volume = self._ledger.ready(name)
        place = self._layout.mount_point(name)
        with self._volumes.locks.locked(volume) as volume:
            # A file system has one set of mount options, so a second mount of it is a clone of the first.
            mounted = self._is_mounted(volume, place)
            root = detached.clone(place) if mounted else self._volumes.mount_detached(volume)
        try:
            yield root
        finally:
            os.close(root)
            self._cleanup.deactivate_later(volume)

    def forget_lost_uses(self) -> None:
        """Reduce each mounted layer's references to one: the engine that took them has ended, and counts anew.

        Docker's own drivers begin with 1 for a mount that they find (graphdriver's RefCounter).
        """
        with self._ledger.transaction("cap uses", durable=False):
            self._ledger.cap_uses(1)

    def unmount_all(self) -> None:
        """Unmount every layer, whatever its references."""
        for volume in self._ledger.volumes():
            if volume.state is not State.MAKING:  # a daemon may hold the lock of a spare for days
                with suppress(NotFound):
                    self._unmount(volume)

    def mounted(self) -> list[str]:
        """Return the places where layers are mounted for an engine."""
        return [entry.target for entry in mount.under(self._layout.mounts) if entry.target != str(self._layout.mounts)]

    def _unmount(self, volume: Volume) -> None:
        with self._volumes.locks.locked(volume) as volume:
            self._count(volume, 0)
            self._unmount_locked(volume)
            self._deactivate(volume)

    def _unmount_locked(self, volume: Volume) -> None:
        info = self._volumes.info(volume)
        if info is None:
            return
        for entry in reversed(mount.of_device(info.dev)):
            self._unmount_patiently(volume, info, Path(entry.target))
        self._volumes.mounter.drop(volume)

    def _deactivate(self, volume: Volume) -> None:
        if not self._volumes.deactivate(volume) and (left := self._volumes.info(volume)):
            logger.warning("the device of the %s is still in use by %s", volume.title, holders.describe(left.dev))

    def _unmount_patiently(self, volume: Volume, info: DeviceInfo, target: Path) -> None:
        try:
            retry_busy(lambda: mount.unmount(target))
        except InUse:
            logger.warning("the %s was unmounted while in use by %s", volume.title, holders.describe(info.dev))
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
