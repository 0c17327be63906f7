"""Locked volumes: each is read again under its lock, since it may have changed while that was waited for."""

from collections.abc import Iterator
from contextlib import contextmanager

from dmthin.errors import NotFound
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import State, Volume
from dmthin.store.volumes.mounts import WorkMounts


class VolumeLocks:
    """Takes the locks of one store's volumes."""

    def __init__(self, ledger: Ledger, locks: Locks, mounts: WorkMounts) -> None:
        self._ledger = ledger
        self._locks = locks
        self._mounts = mounts

    def take(self, volume: Volume) -> tuple[Volume, Lock]:
        """Wait for a volume's lock; return the volume as it is then, its interrupted growth finished.

        Raises NotFound if it has been removed meanwhile, PartlyDone if its file system cannot be grown.
        """
        lock = self._locks.volume(volume.device_id)
        try:
            now = self._current(volume)
            return (self._mounts.finish_growth(now) if now.state is State.GROWING else now), lock
        except BaseException:
            lock.release()
            raise

    @contextmanager
    def locked(self, volume: Volume) -> Iterator[Volume]:
        """Hold a volume's lock; the value is the volume as it is then. Raises what `take` does."""
        now, lock = self.take(volume)
        with lock:
            yield now

    @contextmanager
    def locked_if_free(self, volume: Volume) -> Iterator[Volume | None]:
        """Hold a volume's lock if it is free; the value is None while another holds it. Raises NotFound."""
        lock = self._locks.try_volume(volume.device_id)
        if lock is None:
            self._current(volume)
            yield None
            return
        with lock:
            yield self._current(volume)

    @contextmanager
    def unchanged(self, volume: Volume) -> Iterator[None]:
        """Hold a volume's lock shared: it is not mounted, unmounted or removed meanwhile."""
        with self._locks.share_volume(volume.device_id):
            yield

    def _current(self, volume: Volume) -> Volume:
        """Return a volume as the ledger has it now. Raises NotFound if it has been removed."""
        now = self._ledger.by_id(volume.device_id)
        if now is None or now.name != volume.name or now.state in (State.MAKING, State.REMOVING):
            raise NotFound(f"the {volume.title} has been removed meanwhile")
        return now
