"""Spares: snapshots made ahead, of images that are used again and again. A request then waits for one commit only.

A spare is a volume in state MAKING whose lock the process keeps until it is handed out. If the process dies, recovery
rolls it back like any other unfinished volume.
"""

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from dmthin.errors import DmthinError
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import SPARE_NAMES, Kind, NewVolume, Volume
from dmthin.store.volumes.background import Queue
from dmthin.store.volumes.creation import Created, Unfinished
from dmthin.store.volumes.volumes import Volumes

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
"""The next spare is made this long after a request: the client has enough to do with its snapshot until then."""

_MOST = 8
"""Images that have a spare at a time."""

_REMEMBERED = 64
"""Images whose requests are remembered."""


@dataclass(frozen=True, slots=True)
class Spare:
    """A snapshot of `parent` as that is now; its device is active."""

    parent: Volume
    unfinished: Unfinished


class Spares:
    """The spares that this process keeps of one store's images, one of each. Threads may share it.

    `queue` makes them; without one there are none.
    """

    def __init__(self, ledger: Ledger, volumes: Volumes, queue: Queue | None) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._queue = queue
        self._lock = threading.Lock()
        self._requested: OrderedDict[int, None] = OrderedDict()
        self._making: set[int] = set()
        self._kept: dict[int, Spare] = {}
        self._closed = False

    def hand_out(self, new: NewVolume) -> Created | None:
        """Return `new` with its device if there is a spare for it; None if the caller has to make it.

        The caller holds the parent's lock shared. Raises AlreadyExists (the name), NotFound (the parent has been
        removed).
        """
        if self._queue is None or new.parent is None or new.parent.kind is not Kind.IMAGE:
            return None
        if (spare := self._request(new.parent, self._queue)) is None:
            return None
        try:
            device = self._volumes.ready_device(spare.unfinished.volume) if spare.parent == new.parent else None
        except DmthinError as error:
            logger.debug("the spare of the %s is not used: %s", new.parent.title, error)
            device = None
        except BaseException:
            self._roll_back(spare)
            raise
        if device is None:
            self._roll_back(spare)
            return None
        return Created(self._volumes.creation.finish(spare.unfinished, new), device)

    def drop(self, parent: Volume) -> None:
        """Remove the spare of a volume that is being removed, so that the blocks that both share are freed."""
        with self._lock:
            self._requested.pop(parent.device_id, None)
            spare = self._kept.pop(parent.device_id, None)
        if spare is not None:
            self._roll_back(spare)

    def drop_orphans(self) -> None:
        """Remove the spares of images that another process has removed or changed."""
        with self._lock:
            kept = list(self._kept.values())
        for spare in kept:
            if self._ledger.by_id(spare.parent.device_id) != spare.parent:
                self.drop(spare.parent)

    def close(self) -> None:
        """Remove all spares; no more are made."""
        with self._lock:
            self._closed = True
            left = list(self._kept.values())
            self._kept.clear()
        for spare in left:
            self._roll_back(spare)

    def _request(self, parent: Volume, queue: Queue) -> Spare | None:
        """Take the spare of a volume, None if there is none, and have the next one made.

        The first request for an image makes none: most layers have one child.
        """
        number = parent.device_id
        with self._lock:
            spare = self._kept.pop(number, None)
            again = number in self._requested
            self._requested[number] = None
            self._requested.move_to_end(number)
            if len(self._requested) > _REMEMBERED:
                self._requested.popitem(last=False)
            due = again and number not in self._making and not self._closed
            if due:
                self._making.add(number)
        if due:
            queue.later(_PAUSE_SECONDS, partial(self._make, parent))
        return spare

    def _make(self, parent: Volume) -> None:
        surplus: list[Spare] = []
        try:
            with self._volumes.locks.unchanged(parent):
                info = self._volumes.info(parent)
                # A spare of an image in use would lack what is still written to it, and a pool that is down stays down.
                if not self._closed and not (info and info.in_use) and self._volumes.devices.is_pool_active():
                    name = f"{SPARE_NAMES}{parent.device_id}-{os.urandom(4).hex()}"
                    new = NewVolume(name, Kind.CONTAINER, parent.size, parent.file_system, parent)
                    surplus = self._keep(Spare(parent, self._volumes.creation.begin(new, activate=True)))
        except DmthinError as error:
            logger.debug("no spare of the %s: %s", parent.title, error)
        finally:
            with self._lock:
                self._making.discard(parent.device_id)
        for spare in surplus:
            self._roll_back(spare)

    def _keep(self, spare: Spare) -> list[Spare]:
        """Keep a spare; return those to be removed for it."""
        number = spare.parent.device_id
        with self._lock:
            self._making.discard(number)  # before the spare can be taken, so that its request has the next one made
            if self._closed:
                return [spare]
            surplus = [before] if (before := self._kept.pop(number, None)) else []
            self._kept[number] = spare
            if len(self._kept) > _MOST:
                surplus.append(self._kept.pop(next(iter(self._kept))))
            return surplus

    def _roll_back(self, spare: Spare) -> None:
        self._volumes.creation.roll_back(spare.unfinished)
