"""Background queues: work that is done after the caller has been answered.

The intent of such work is in the ledger already, or it only saves resources. A process that dies before the work is
done leaves what a killed process leaves, and the next transaction recovers it.
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dmthin.errors import DmthinError
from dmthin.kernel import priority

logger = logging.getLogger(__name__)

Action = Callable[[], None]


class Queue(Protocol):
    """Takes work to be done later."""

    def later(self, seconds: float, action: Action) -> None:
        """Run `action` once, `seconds` from now or later; earlier where the queue is full, drained or closed."""

    def drain(self) -> bool:
        """Return once all work queued so far is done; whether there was any."""


class InlineQueue:
    """Runs work in the caller, and lets it have the errors: for processes that end with their command."""

    def later(self, seconds: float, action: Action) -> None:
        del seconds
        action()

    def drain(self) -> bool:
        return False


class BackgroundQueue:
    """Runs work in a thread of its own, one action after the other by their due times: for daemons.

    The thread starts with the first action. Errors become warnings. Queued work holds locks and descriptors, so a queue
    of `most` actions is full, and a further action runs in the caller.
    """

    def __init__(self, name: str, most: int = 128) -> None:
        self._most = most
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Action]] = []
        self._changed = threading.Condition()
        self._working = False
        self._hurried = 0
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name=f"{name}-queue", daemon=True)
        self._started = False

    def later(self, seconds: float, action: Action) -> None:
        with self._changed:
            queued = not self._ended and len(self._waiting) < self._most and self._has_thread()
            if queued:
                heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._numbers), action))
                self._changed.notify_all()
        if not queued:
            _run(action)

    def drain(self) -> bool:
        with self._changed:
            if self._is_done():
                return False
            self._hurried += 1
            self._changed.notify_all()
            self._changed.wait_for(self._is_done)
            self._hurried -= 1
            return True

    def close(self) -> None:
        """Run what is queued now, and end the thread; may be called twice."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._started:
            self._thread.join()

    def _has_thread(self) -> bool:
        """Start the thread if need be; return False where the host allows no more threads."""
        if not self._started:
            try:
                self._thread.start()
            except RuntimeError:
                return False
            self._started = True
        return True

    def _is_done(self) -> bool:
        return not self._waiting and not self._working

    def _serve(self) -> None:
        priority.reset_priority()  # callers have been answered already
        while (action := self._next()) is not None:
            _run(action)
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _next(self) -> Action | None:
        """Wait for the next action that is due; None once the queue is closed and empty."""
        with self._changed:
            while self._waiting or not self._ended:
                pause = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if pause is not None and (pause <= 0 or self._hurried or self._ended):
                    self._working = True
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(pause)
            return None


@dataclass(frozen=True, slots=True)
class Background:
    """The queues that one process uses for a store. Without a queue for spares, it makes none."""

    work: Queue = field(default_factory=InlineQueue)
    spares: Queue | None = None


def _run(action: Action) -> None:
    try:
        action()
    except DmthinError as error:
        logger.warning("left to the next change: %s", error)
    except Exception:
        logger.exception("left to the next change")
