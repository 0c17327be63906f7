"""Snapshots made ahead, of images that are used again and again: a container's start then waits for the ledger alone.

A spare is a volume in the making until it is handed out, its lock held: what a process that dies leaves of it is swept
like any other.
"""

import logging
import os
import threading
from collections import OrderedDict
from contextlib import ExitStack, suppress
from functools import partial

from dmthin.errors import DmthinError
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import SPARE_NAMES, Kind, NewVolume, Volume
from dmthin.store.volumes.background import Later
from dmthin.store.volumes.change import Made, Record, no_record
from dmthin.store.volumes.volumes import Volumes

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
"""The next spare is made this long after a snapshot was asked for, whose user has enough to do until then."""

_MOST = 8
"""Images of which there is a spare at a time."""

_REMEMBERED = 64
"""Images of which it is known that a snapshot was asked for."""


class Spares:
    """The spares that this process keeps of one store's images, one of each. Threads may share it."""

    def __init__(self, ledger: Ledger, volumes: Volumes) -> None:
        self.behind: Later | None = None
        """Who makes them; a daemon has a thread for it. Without one there are none."""
        self._ledger = ledger
        self._volumes = volumes
        self._lock = threading.Lock()
        self._asked: OrderedDict[int, None] = OrderedDict()
        self._making: set[int] = set()
        self._kept: dict[int, _Spare] = {}
        self._ended = False

    def hand_out(self, new: NewVolume, record: Record) -> Made | None:
        """`new`, its device there, if there is a spare that it can be; else None: let it be made.

        The caller keeps others from changing its parent meanwhile. Raises AlreadyExists (the name), NotFound (the
        parent is gone).
        """
        if self.behind is None or new.parent is None or new.parent.kind is not Kind.IMAGE:
            return None
        if (spare := self._ask(new.parent, self.behind)) is None:
            return None
        try:
            device = self._volumes.ready_device(spare.volume) if spare.parent == new.parent else None
        except DmthinError as error:
            logger.debug("no use of the spare of the %s: %s", new.parent.title, error)
            device = None
        if device is None:
            spare.drop()
            return None
        return Made(spare.become(new, record), device)

    def drop(self, parent: Volume) -> None:
        """Remove the spare of a volume that is being removed, so that the blocks that both have come back."""
        with self._lock:
            self._asked.pop(parent.device_id, None)
            spare = self._kept.pop(parent.device_id, None)
        if spare is not None:
            spare.drop()

    def drop_orphans(self) -> None:
        """Remove the spares of images that another process has removed or changed."""
        with self._lock:
            kept = list(self._kept.values())
        changed = [spare.parent for spare in kept if self._ledger.by_id(spare.parent.device_id) != spare.parent]
        for parent in changed:
            self.drop(parent)

    def close(self) -> None:
        """Remove all of them; no more are made."""
        with self._lock:
            self._ended = True
            left = list(self._kept.values())
            self._kept.clear()
        for spare in left:
            spare.drop()

    def _ask(self, parent: Volume, behind: Later) -> "_Spare | None":
        """The spare of a volume, if there is one; the next is to be made.

        The first time that a snapshot is asked for is not worth one: most layers have one child.
        """
        number = parent.device_id
        with self._lock:
            spare = self._kept.pop(number, None)
            again = number in self._asked
            self._asked[number] = None
            self._asked.move_to_end(number)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            due = again and number not in self._making and not self._ended
            if due:
                self._making.add(number)
        if due:
            behind.later(_PAUSE_SECONDS, partial(self._make, parent))
        return spare

    def _make(self, parent: Volume) -> None:
        too_many = None
        try:
            with self._volumes.unchanged(parent):
                info = self._volumes.info(parent)
                # What is written to one in use would be missing; and nobody has asked for a pool that is down.
                if not self._ended and not (info and info.in_use) and self._volumes.is_pool_up():
                    too_many = self._keep(_Spare(self._ledger, self._volumes, parent))
        except DmthinError as error:
            logger.debug("no spare of the %s: %s", parent.title, error)
        finally:
            with self._lock:
                self._making.discard(parent.device_id)
        if too_many is not None:
            too_many.drop()

    def _keep(self, spare: "_Spare") -> "_Spare | None":
        """Keep a spare; what is to be dropped instead."""
        number = spare.parent.device_id
        with self._lock:
            self._making.discard(number)  # else who takes it at once would not let the next one be made
            if self._ended:
                return spare
            self._kept[number] = spare
            return self._kept.pop(next(iter(self._kept))) if len(self._kept) > _MOST else None


class _Spare:
    """A snapshot of `parent` as that is now, its device there."""

    def __init__(self, ledger: Ledger, volumes: Volumes, parent: Volume) -> None:
        self.parent = parent
        self._ledger = ledger
        self._new = NewVolume(
            f"{SPARE_NAMES}{parent.device_id}-{os.urandom(4).hex()}",
            Kind.CONTAINER,
            parent.size,
            parent.file_system,
            parent,
        )
        self._record: Record = no_record
        with ExitStack() as making:
            self.volume = making.enter_context(volumes.making(self._new, activate=True, record=self._finish))
            self._making = making.pop_all()

    def become(self, new: NewVolume, record: Record) -> Volume:
        """Be the volume that was asked for, durably. If that fails there is neither."""
        self._new, self._record = new, record
        self._making.close()
        return self.volume

    def drop(self) -> None:
        """Remove it, or leave it to the next change."""
        with suppress(_Unwanted), self._making:
            raise _Unwanted

    def _finish(self, volume: Volume) -> None:
        """What belongs into the transaction that makes it READY."""
        self._ledger.require_free(self._new.name)
        self._ledger.require_there(self.parent)
        self.volume = self._ledger.rename(volume, self._new.name, self._new.kind)
        self._record(self.volume)


class _Unwanted(Exception):
    """Nobody has asked for a spare."""
