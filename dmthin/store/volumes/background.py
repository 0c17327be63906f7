"""Work that callers need not wait for: its intent is in the ledger already, or it only tidies.

Who dies with such work undone leaves what a process that is killed leaves, and the next change ends it.
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from dmthin.errors import DmthinError
from dmthin.kernel import priority

logger = logging.getLogger(__name__)

Action = Callable[[], None]


class Later(Protocol):
    """Who does the work."""

    def later(self, seconds: float, action: Action) -> None:
        """Do `action` once, not before `seconds` have passed if that can be helped."""

    def drain(self) -> bool:
        """Return once all that was brought until now is done; whether that was anything."""


class InlineQueue:
    """For processes that end with their command: the caller does it, and gets its errors."""

    def later(self, seconds: float, action: Action) -> None:
        del seconds
        action()

    def drain(self) -> bool:
        return False


class BackgroundQueue:
    """For daemons: a thread does one thing after the other, by their time; errors are warnings.

    Work holds locks and descriptors, so no more than `most` waits: who brings more does it himself.
    """

    def __init__(self, name: str, most: int = 128) -> None:
        self._most = most
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Action]] = []
        self._changed = threading.Condition()
        self._working = False
        self._hurried = 0
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=f"{name}-behind", daemon=True)
        self._thread.start()

    def later(self, seconds: float, action: Action) -> None:
        with self._changed:
            taken = not self._ended and len(self._waiting) < self._most
            if taken:
                heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._numbers), action))
                self._changed.notify_all()
        if not taken:
            _do(action)

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
        """Do what is left now, and end the thread; may be called twice."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _is_done(self) -> bool:
        return not self._waiting and not self._working

    def _work(self) -> None:
        priority.take_turns()  # nobody waits for this
        while (action := self._next()) is not None:
            _do(action)
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _next(self) -> Action | None:
        """Wait for the next thing to do; None at the end."""
        with self._changed:
            while self._waiting or not self._ended:
                pause = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if pause is not None and (pause <= 0 or self._hurried or self._ended):
                    self._working = True
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(pause)
            return None


def _do(action: Action) -> None:
    try:
        action()
    except DmthinError as error:
        logger.warning("left for the next change: %s", error)
    except Exception:
        logger.exception("left for the next change")
