"""Transactions on volumes: each begins with the recovery of interrupted operations."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dmthin.errors import DmthinError, NotFound, Unavailable
from dmthin.kernel.devicemapper import DeviceMapper
from dmthin.pool.guard import resume
from dmthin.store.lifecycle.gate import ActivePool, Gate
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import State, Volume
from dmthin.store.volumes.devices import Devices
from dmthin.store.volumes.mounts import WorkMounts
from dmthin.store.volumes.teardown import Teardown

logger = logging.getLogger(__name__)

_ATTEMPTS = 8
"""How often interrupted growths are finished for one transaction before that gives up."""


class Recovery:
    """Finds the operations in the ledger whose lock is free, and rolls them back or finishes them."""

    def __init__(
        self,
        ledger: Ledger,
        locks: Locks,
        dm: DeviceMapper,
        gate: Gate,
        devices: Devices,
        mounts: WorkMounts,
        teardown: Teardown,
    ) -> None:
        self._ledger = ledger
        self._locks = locks
        self._dm = dm
        self._gate = gate
        self._devices = devices
        self._mounts = mounts
        self._teardown = teardown

    @contextmanager
    def transaction(self) -> Iterator[ActivePool]:
        """Hold the pool lock shared for one transaction. Does not nest, and must be short.

        Before the block runs, the pool is active and interrupted operations have been recovered. Raises what
        `Gate.hold` does.
        """
        for _ in range(_ATTEMPTS):
            with self._gate.hold() as pool:
                growing = self._recover(pool)
                if not growing:
                    yield pool
                    return
            # Growing a file system takes long and mounts it, so it runs without the pool lock.
            for volume in growing:
                self._finish_growth(volume)
        raise Unavailable("interrupted growths of volumes keep coming up", hint="see: dmthin list")

    def run(self) -> None:
        """Recover interrupted operations, and removals that were left to the last user of a device.

        Where there are none, a pool that is down stays down.
        """
        if self._ledger.is_work_left():
            with self.transaction():
                pass

    def _recover(self, pool: ActivePool) -> list[Volume]:
        """Roll back what was being made and finish what was being removed.

        Return the volumes that were being grown: the caller finishes those without the pool lock. What fails here is
        left for the next transaction, with a warning: it must not stop others.
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
                elif not self._is_removed_but_open(pool, now):
                    self._take_down(pool, now)
        return growing

    def _take_down(self, pool: ActivePool, volume: Volume) -> None:
        making = volume.state is State.MAKING
        try:
            self._ledger.sync()  # else a power cut might bring back a record whose volume the pool has no more
            if making:
                self._resume_abandoned(pool)
            # A volume in state MAKING is free in a moment, when the programs of its maker have died too. One in state
            # REMOVING may be in use for days, so that is not waited for.
            self._teardown.run(pool, volume, patient=making)
        except DmthinError as error:
            logger.warning("the unfinished %s stays for now: %s", volume.title, error)

    def _finish_growth(self, volume: Volume) -> None:
        """Finish one interrupted growth, if its lock is still free; a failure is a warning."""
        lock = self._locks.try_volume(volume.device_id)
        if lock is None:
            return
        with lock:
            now = self._ledger.by_id(volume.device_id)
            if now is None or now.state is not State.GROWING:
                return
            try:
                self._mounts.finish_growth(now)
            except DmthinError as error:
                logger.warning("the %s is not grown yet: %s", now.title, error)

    def _resume_abandoned(self, pool: ActivePool) -> None:
        """Resume volumes whose lock is free: a process suspended them for a snapshot and died, with its guard."""
        for volume in self._ledger.volumes():
            info = self._devices.thin(pool, volume).info()
            if info is None or not info.suspended:
                continue
            if lock := self._locks.try_volume(volume.device_id):
                with lock, suppress(NotFound):
                    resume(self._dm, info.name)

    def _is_removed_but_open(self, pool: ActivePool, volume: Volume) -> bool:
        """Return whether only the last user of its device keeps a removed volume, by one quick look."""
        info = self._devices.thin(pool, volume).info() if volume.state is State.REMOVING else None
        return info is not None and info.deferred_remove and info.open_count > 0
