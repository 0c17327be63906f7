"""Work after a caller has been answered: the rest of removals, and devices that become idle."""

import logging
from contextlib import suppress
from functools import partial

from dmthin.errors import NotFound
from dmthin.kernel import holders, mount
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, State, Volume
from dmthin.store.volumes.background import Queue
from dmthin.store.volumes.creation import Unfinished
from dmthin.store.volumes.removal import PendingRemoval
from dmthin.store.volumes.spares import Spares
from dmthin.store.volumes.volumes import Volumes

logger = logging.getLogger(__name__)

_REMOVAL_SECONDS = 0.25
"""The rest of a removal waits this long, so that it does not slow down its own caller's next calls."""

_LINGER_SECONDS = 2.0
"""How long an idle device stays: an engine often uses a volume again, and each activation costs three udev events."""

_LINGER_ATTEMPTS = 30
"""How often an idle device is looked at again because its volume was locked just then."""


class Cleanup:
    """Queues the work that is left on volumes of one store."""

    def __init__(self, ledger: Ledger, volumes: Volumes, spares: Spares, queue: Queue) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._spares = spares
        self._queue = queue

    def remove(self, volume: Volume) -> None:
        """Remove a volume that is not mounted, not open and has no children. Raises InUse, NotFound.

        Its name is free when this returns; its space comes back later.
        """
        self.finish_removal(volume, self._volumes.removal.begin(volume))

    def finish_removal(self, volume: Volume, pending: PendingRemoval) -> None:
        """Queue the rest of the removal of `volume`, and of its spare."""
        self._queue.later(_REMOVAL_SECONDS, partial(self._finish_removal, volume, pending))

    def roll_back_later(self, unfinished: Unfinished) -> None:
        """Queue the removal of a volume that was made for a while only."""
        self._queue.later(_REMOVAL_SECONDS, partial(self._volumes.creation.roll_back, unfinished))

    def deactivate_later(self, volume: Volume) -> None:
        """Queue the deactivation of a volume, if it is not mounted by then."""
        self._queue.later(_LINGER_SECONDS, partial(self._deactivate_unmounted, volume))

    def deactivate_idle(self, *kinds: Kind) -> None:
        """Queue the deactivation of every idle device of these kinds: a daemon that died may have left some."""
        for volume in self._ledger.volumes():
            if volume.kind in kinds and volume.state is State.READY and self.is_idle(volume):
                self.deactivate_later(volume)

    def is_idle(self, volume: Volume) -> bool:
        """Return whether a volume has a device that is not open."""
        info = self._volumes.info(volume)
        return info is not None and not info.open_count

    def drain(self) -> None:
        """Return once all queued work is done."""
        self._queue.drain()

    def _finish_removal(self, volume: Volume, pending: PendingRemoval) -> None:
        try:
            self._spares.drop(volume)
        finally:
            self._volumes.removal.finish(pending)
        if (left := self._ledger.by_id(volume.device_id)) and (info := self._volumes.info(left)):
            logger.warning("the removed %s is still in use by %s", volume.title, holders.describe(info.dev))

    def _deactivate_unmounted(self, volume: Volume, attempts: int = _LINGER_ATTEMPTS) -> None:
        # The lock is not waited for: a pending removal holds it, whose rest may be next in this very queue.
        with suppress(NotFound), self._volumes.locks.locked_if_free(volume) as now:
            if now is None:
                if attempts > 1:
                    self._queue.later(_LINGER_SECONDS, partial(self._deactivate_unmounted, volume, attempts - 1))
                return
            info = self._volumes.info(now)
            if info is not None and not mount.of_device(info.dev):
                self._volumes.deactivate(now)
