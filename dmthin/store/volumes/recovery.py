"""Ending what processes that died have left of their changes: the first step of every change."""

import logging
from contextlib import suppress

from dmthin.errors import DmthinError, NotFound
from dmthin.kernel.devicemapper import DeviceMapper
from dmthin.pool.guard import resume
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import State, Volume
from dmthin.store.volumes.change import ActivePool
from dmthin.store.volumes.volumes import Volumes

logger = logging.getLogger(__name__)


class Recovery:
    """Finds the intents in the ledger whose lock is free, and ends them."""

    def __init__(self, ledger: Ledger, locks: Locks, dm: DeviceMapper, volumes: Volumes) -> None:
        self._ledger = ledger
        self._locks = locks
        self._dm = dm
        self._volumes = volumes

    def sweep(self, pool: ActivePool) -> list[Volume]:
        """End what processes that died have left: remove what they were making or removing.

        Returns the volumes that they were growing, which the caller finishes once it no longer holds the pool. One that
        cannot be ended now is left for the next change, with a warning: it must not stop the others.
        """
        growing = []
        for volume in self._ledger.unfinished():
            lock = self._locks.try_volume(volume.device_id)
            if lock is None:
                continue
            with lock:
                now = self._ledger.by_id(volume.device_id)
                if now is None or now.state is State.READY:
                    continue
                if now.state is State.GROWING:
                    growing.append(now)
                    continue
                if self._waits_for_its_user(pool, now):
                    continue
                try:
                    self._ledger.harden()  # else a power cut might bring back what the pool has no more
                    if now.state is State.MAKING:
                        self._resume_abandoned(pool)
                    # What was being made is free in a moment, when its maker's programs have died too; what is being
                    # removed may be in use for days.
                    self._volumes.end(pool, now, patient=now.state is State.MAKING)
                except DmthinError as error:
                    logger.warning("the unfinished %s stays for now: %s", now.title, error)
        return growing

    def finish_growth(self, volume: Volume) -> None:
        """End what a process that died has left of growing a volume; a failure is a warning, as in `sweep`."""
        lock = self._locks.try_volume(volume.device_id)
        if lock is None:
            return
        with lock:
            now = self._ledger.by_id(volume.device_id)
            if now is None or now.state is not State.GROWING:
                return
            try:
                self._volumes.finish_growth(now)
            except DmthinError as error:
                logger.warning("the %s is not grown yet: %s", now.title, error)

    def _resume_abandoned(self, pool: ActivePool) -> None:
        """Resume volumes that a process suspended and died, its guard too: those whose lock is free."""
        for volume in self._ledger.volumes():
            info = self._volumes.thin(pool, volume).info()
            if info is None or not info.suspended:
                continue
            if lock := self._locks.try_volume(volume.device_id):
                with lock, suppress(NotFound):
                    resume(self._dm, info.name)

    def _waits_for_its_user(self, pool: ActivePool, volume: Volume) -> bool:
        """Whether a volume is removed but for a device that somebody has open still, as one quick look tells."""
        info = self._volumes.thin(pool, volume).info() if volume.state is State.REMOVING else None
        return info is not None and info.deferred_remove and info.open_count > 0
