"""Removal of volumes: first the name and the record's state, durably, then the blocks and the device."""

from dataclasses import dataclass

from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Lock
from dmthin.store.state.model import Volume
from dmthin.store.volumes import busy
from dmthin.store.volumes.devices import Devices
from dmthin.store.volumes.locking import VolumeLocks
from dmthin.store.volumes.mounter import Mounter
from dmthin.store.volumes.recovery import Recovery
from dmthin.store.volumes.teardown import Teardown


@dataclass(frozen=True, slots=True)
class PendingRemoval:
    """A volume in state REMOVING, whose name is free already. Its lock is held until `Removal.finish`."""

    volume: Volume
    lock: Lock


class Removal:
    """Removes the volumes of one store."""

    def __init__(
        self,
        ledger: Ledger,
        locks: VolumeLocks,
        devices: Devices,
        recovery: Recovery,
        teardown: Teardown,
        mounter: Mounter,
        options: StorageOptions,
    ) -> None:
        self._ledger = ledger
        self._locks = locks
        self._devices = devices
        self._recovery = recovery
        self._teardown = teardown
        self._mounter = mounter
        self._options = options

    def remove(self, volume: Volume, *, force: bool = False) -> None:
        """Remove a volume and give its space back. Raises what `begin` does."""
        self.finish(self.begin(volume, force=force))

    def begin(self, volume: Volume, *, force: bool = False, orphan: bool = False) -> PendingRemoval:
        """Remove a volume up to where it is gone for every user, durably. `finish` does the rest.

        With `force`, mounts are detached lazily and an open device is left to its last user, if
        dm.use_deferred_deletion allows that. With `orphan`, children may stay: they become those of its parent.
        Raises InUse (mounted, open, or with children), NotFound (removed meanwhile).
        """
        volume, lock = self._locks.take(volume)
        try:
            with self._recovery.transaction():
                info = self._devices.info(volume)
                self._require_childless(volume, orphan=orphan)
                if force and self._options.deferred_deletion:
                    busy.detach(info)
                else:
                    busy.require_unused(volume, info)
                with self._ledger.transaction(f"remove {volume.name}"):
                    self._require_childless(volume, orphan=orphan)
                    removing = self._teardown.mark(volume)
                self._mounter.drop(volume)
        except BaseException:
            lock.release()
            raise
        return PendingRemoval(removing, lock)

    def finish(self, pending: PendingRemoval) -> None:
        """Discard the blocks, remove the device, delete the device id and forget the record; release the lock."""
        with pending.lock, self._recovery.transaction() as pool:
            self._teardown.run(pool, pending.volume)

    def plan(self, volume: Volume) -> Volume:
        """Return a volume that `remove` removes without `force`. Raises InUse (mounted, open, or with children)."""
        self._require_childless(volume, orphan=False)
        busy.require_unused(volume, self._devices.info(volume))
        return volume

    def _require_childless(self, volume: Volume, *, orphan: bool) -> None:
        if not orphan:
            self._ledger.require_childless(volume)
