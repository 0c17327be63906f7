"""Creation of volumes: snapshots and empty ones, each one transaction between the ledger and the pool.

The intent is committed first (a record in state MAKING whose lock is held), then the pool gets its message, then the
record becomes READY. A process that dies in between leaves a record with a free lock, which recovery rolls back.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from dmthin.errors import AlreadyExists, DmthinError, NeedsRepair, NoDataSpace
from dmthin.kernel import block
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool.thinpool import ThinPool
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.lifecycle.gate import ActivePool
from dmthin.store.state.ledger import Added, Ledger
from dmthin.store.state.lock_waits import unlimited
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import NewVolume, State, StoreRecord, Volume
from dmthin.store.state.snapshot_table import SnapshotTable
from dmthin.store.volumes.devices import Devices
from dmthin.store.volumes.recovery import Recovery
from dmthin.store.volumes.teardown import Teardown
from dmthin.units import MIB, format_size

logger = logging.getLogger(__name__)

_LEAST_HOST_FREE = 32 * MIB
"""Bytes free below sparse files without which no volume is made: a snapshot itself writes metadata."""


@dataclass(frozen=True, slots=True)
class Created:
    """A volume that was made, and its block device if that was asked for."""

    volume: Volume
    device: DeviceInfo | None = None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A volume in state MAKING that the pool has already. Its lock is held until it is finished or rolled back."""

    new: NewVolume
    volume: Volume
    lock: Lock


class Creation:
    """Makes the volumes of one store."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        locks: Locks,
        devices: Devices,
        recovery: Recovery,
        teardown: Teardown,
        options: StorageOptions,
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._locks = locks
        self._devices = devices
        self._recovery = recovery
        self._teardown = teardown
        self._options = options
        self._snapshots = SnapshotTable(ledger)

    def make(self, new: NewVolume, *, origin: Volume | None = None, activate: bool = False) -> Created:
        """Make a volume that is complete as a snapshot of `origin`, by default of its parent.

        The block device is made after the last commit: udevd's work on it then delays no caller that waits for that
        commit. The caller keeps others from mounting the origin meanwhile. Raises AlreadyExists (the name), NotFound
        (the parent has been removed), NoDataSpace, NoMetadataSpace, NeedsRepair.
        """
        origin = origin or new.parent
        with self._suspend_lock(origin) as suspend, self._recovery.transaction() as pool:
            unfinished = self._begin(pool, new)
            with unfinished.lock:
                try:
                    self._send(pool, unfinished.volume, origin, suspend)
                    volume = self._commit(unfinished, new)
                except BaseException:
                    self._try_teardown(unfinished.volume, pool)
                    raise
                return Created(volume, self._activate_or_remove(pool, volume) if activate else None)

    def begin(self, new: NewVolume, *, activate: bool = False) -> Unfinished:
        """Make a volume that is not complete yet: a snapshot of its parent, or empty without one.

        The caller ends it by `finish` or `roll_back`. Raises what `make` does.
        """
        with self._suspend_lock(new.parent) as suspend, self._recovery.transaction() as pool:
            unfinished = self._begin(pool, new)
            try:
                self._send(pool, unfinished.volume, new.parent, suspend)
                if activate:
                    self._devices.activate(pool, unfinished.volume)
            except BaseException:
                with unfinished.lock:
                    self._try_teardown(unfinished.volume, pool)
                raise
            return unfinished

    def finish(self, unfinished: Unfinished, as_new: NewVolume | None = None) -> Volume:
        """Commit a volume as complete, durably; return it READY. If that fails, it is rolled back.

        With `as_new`, a volume made ahead takes that name and kind instead of its own. Raises AlreadyExists (the name)
        and NotFound (the parent has been removed) then.
        """
        with unfinished.lock:
            try:
                return self._commit(unfinished, as_new or unfinished.new)
            except BaseException:
                self._try_teardown(unfinished.volume)
                raise

    def roll_back(self, unfinished: Unfinished) -> None:
        """Remove a volume that is not complete. What cannot be removed now is left to the next recovery."""
        with unfinished.lock:
            self._try_teardown(unfinished.volume)

    @contextmanager
    def making(self, new: NewVolume, *, activate: bool = False) -> Iterator[Volume]:
        """Make a volume that the block completes. An error, or the end of this process, leaves no volume.

        Raises what `make` does.
        """
        unfinished = self.begin(new, activate=activate)
        try:
            yield unfinished.volume
        except BaseException:
            self.roll_back(unfinished)
            raise
        self.finish(unfinished)

    def require_room(self, thin: ThinPool, record: StoreRecord) -> None:
        """Raise NoDataSpace or NoMetadataSpace if an active pool, or the host below its files, has no room.

        Raises NeedsRepair for a pool that takes no messages.
        """
        thin.require_data_space(self._options.min_free_percent)
        if not record.data or not self._layout.data(record).is_file:
            return
        free = block.free_space(self._layout.root)
        if free < _LEAST_HOST_FREE:
            raise NoDataSpace(
                f"the file system below {self._layout.root} has only {format_size(free)} free",
                hint="free some space there, or run: dmthin pool trim",
            )

    def _begin(self, pool: ActivePool, new: NewVolume) -> Unfinished:
        """Commit the intent of a volume for which there is room."""
        self.require_room(pool.thin, pool.record)
        added: Added | None = None
        try:
            with self._ledger.transaction(f"make {new.name}"):
                added = self._ledger.add(new, self._locks)
        except BaseException:
            if added is not None:  # the commit or its sync has failed: if there is a record, recovery may roll it back
                added.lock.release()
            raise
        return Unfinished(new, added.volume, added.lock)

    def _commit(self, unfinished: Unfinished, new: NewVolume) -> Volume:
        """Commit the state READY, with the snapshot's row if the volume is one."""
        volume = unfinished.volume
        with self._ledger.transaction(f"made {volume.name}"):
            if new is not unfinished.new:
                self._ledger.require_free(new.name)
                if new.parent is not None:
                    self._ledger.require_there(new.parent)
                volume = self._ledger.rename(volume, new.name, new.kind)
            volume = self._ledger.mark(volume, State.READY)
            if new.snapshot is not None:
                self._snapshots.add(new.snapshot.of(volume))
        return volume

    def _send(self, pool: ActivePool, volume: Volume, origin: Volume | None, suspend: Lock | None) -> None:
        """Send the pool's message, the origin suspended if it is in use; `suspend` is its suspend lock then.

        A device id that the pool has already belongs to another volume: only the record is deleted then. Raises
        NeedsRepair for it.
        """
        quiesced = self._devices.thin(pool, origin).quiesced(suspend.fd) if origin and suspend else nullcontext()
        with quiesced:
            try:
                if origin is None:
                    pool.thin.create_thin(volume.device_id)
                else:
                    pool.thin.create_snap(volume.device_id, origin.device_id)
            except AlreadyExists:
                with self._ledger.transaction(f"forget {volume.name}"):
                    self._ledger.forget(volume)
                raise NeedsRepair(
                    f"the pool has a volume {volume.device_id} that the ledger does not know",
                    hint="the ledger was restored from an old copy, or another program has changed the pool",
                ) from None

    def _suspend_lock(self, origin: Volume | None) -> AbstractContextManager[Lock | None]:
        """Return the suspend lock of an origin in use, for which others that share the volume may wait too.

        It is taken before the pool lock: the process that is to give a full pool more space must not wait for us.
        """
        if origin and (info := self._devices.info(origin)) and info.in_use:
            return self._locks.suspend(origin.device_id)
        return nullcontext()

    def _activate_or_remove(self, pool: ActivePool, volume: Volume) -> DeviceInfo:
        """Activate a volume that has just become READY; if that fails, the volume is removed again."""
        try:
            return self._devices.activate(pool, volume)
        except BaseException:
            with self._ledger.transaction(f"remove {volume.name}"):
                removing = self._teardown.mark(volume)
            self._try_teardown(removing, pool)
            raise

    def _try_teardown(self, volume: Volume, pool: ActivePool | None = None) -> None:
        """Tear a volume down after an error, which a second one must not hide.

        A pool that is down stays down: the next change activates it and recovers.
        """
        try:
            if pool is not None:
                self._teardown.run(pool, volume)
            elif self._devices.is_pool_active():
                with unlimited(), self._recovery.transaction() as active:
                    self._teardown.run(active, volume)
        except DmthinError as error:
            logger.warning("the unfinished %s stays for now: %s", volume.title, error)
