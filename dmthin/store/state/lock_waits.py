"""Waits for the locks of a store: which byte is which lock, the limit of a wait, and what is reported meanwhile."""

import logging
import math
import os
import time

from dmthin import steps
from dmthin.errors import TimeLimit
from dmthin.kernel import filelock
from dmthin.kernel.filelock import PendingLock

logger = logging.getLogger(__name__)

GATE = 0
"""Held while the pool lock is waited for, and for as long as it is held exclusively."""

POOL = 1
METADATA_SNAPSHOT = 2
BASE = 3
VOLUME = 16
"""The first volume's."""

SUSPEND = 1 << 25
"""The first volume's, beyond all of VOLUME: a device id has 24 bits."""

_NAMES = {
    GATE: "the pool lock",
    POOL: "the pool lock",
    METADATA_SNAPSHOT: "the metadata snapshot lock",
    BASE: "the base lock",
}

_SUSPEND_SECONDS = 30.0
"""How long a suspend lock is waited for at most: its holder may wait for space in the pool."""

_PAUSES_SECONDS = (0.00005, 0.0001, 0.0002, 0.0004)
_FIRST_WARNING_SECONDS = 5.0
_WARNING_SECONDS = 30.0

_limit = math.inf


def limit_waits(seconds: float) -> None:
    """Let no wait of this process for one lock take longer from now on; `math.inf`, the default, is no limit.

    The wait then ends with TimeLimit. With 0 there is no wait: a lock that is not free is an error.
    """
    global _limit
    _limit = seconds


def try_lock(fd: int, byte: int, *, shared: bool = False) -> bool:
    """Lock a byte of an open file if it is free, by one system call; return whether it was. Raise OSError."""
    if not filelock.try_lock(fd, byte, shared=shared):
        return False
    if byte != GATE:  # after which the pool lock is taken
        trace_taken(byte, shared=shared)
    return True


def trace_taken(byte: int, *, shared: bool) -> None:
    """Trace that a lock is held now."""
    if steps.verbosity >= steps.REQUESTS:
        steps.report(f"lock: {_name(byte)}{', shared' if shared else ''}")


class LockWaits:
    """The waits of one store's users in this process."""

    def __init__(self) -> None:
        self._abandoned: dict[tuple[int, bool], list[PendingLock]] = {}
        """By byte and whether shared: threads that still wait for a lock whose caller has given up."""

    def wait(self, fd: int, byte: int, *, shared: bool) -> int:
        """Wait for a lock that is not free, and return the open file that holds it.

        The open file `fd` becomes this object's, and is the one returned or is closed. Raise TimeLimit, OSError.
        """
        begin, since = time.monotonic(), time.strftime("%H:%M:%S")
        try:
            is_taken = _limit > 0 and _retry(fd, byte, shared=shared)
        except BaseException:
            os.close(fd)
            raise
        if not is_taken:
            if steps.verbosity:
                steps.report(f"lock: waiting for {_name(byte)}")
            fd = self._wait_in_thread(fd, byte, begin, since, shared=shared)
        if steps.verbosity:
            steps.report(f"lock: {_name(byte)} after {(time.monotonic() - begin) * 1000:.2f} ms")
        return fd

    def _wait_in_thread(self, fd: int, byte: int, begin: float, since: str, *, shared: bool) -> int:
        name, limit = _name(byte), min(_limit, _SUSPEND_SECONDS if byte >= SUSPEND else math.inf)
        waited, warn_after = 0.0, _FIRST_WARNING_SECONDS
        pending = self._pending(fd, byte, shared=shared)
        try:
            while not pending.wait(max(0.0, min(warn_after, limit) - waited)):
                waited = time.monotonic() - begin
                if waited >= limit:
                    raise TimeLimit(
                        f"waited {limit:g} s for {name}, held by {_holders(pending.fd, byte)}",
                        hint="see what that does, or wait longer with --lock-timeout",
                    )
                if waited >= warn_after:
                    holders = _holders(pending.fd, byte)
                    logger.warning("waiting for %s since %s (%.0f s), held by %s", name, since, waited, holders)
                    warn_after += _WARNING_SECONDS
        except BaseException:
            self._abandon(pending, byte, shared=shared)
            raise
        return pending.fd

    def _pending(self, fd: int, byte: int, *, shared: bool) -> PendingLock:
        """Return a thread that waits for the lock: an abandoned one if there is one, else a new one on `fd`.

        So there are never more of them than there were callers at a time, however long a lock is not released.
        """
        abandoned = self._abandoned.get((byte, shared), [])
        while abandoned:
            pending = abandoned.pop()
            if pending.adopt():
                os.close(fd)
                return pending
        return PendingLock(fd, byte, shared=shared)

    def _abandon(self, pending: PendingLock, byte: int, *, shared: bool) -> None:
        pending.abandon()
        others = self._abandoned.get((byte, shared), [])
        self._abandoned[byte, shared] = [other for other in others if not other.has_ended] + [pending]


def _name(byte: int) -> str:
    if byte >= SUSPEND:
        return f"the suspend lock of volume {byte - SUSPEND}"
    return _NAMES.get(byte) or f"the lock of volume {byte - VOLUME}"


def _retry(fd: int, byte: int, *, shared: bool) -> bool:
    """Try a few times within a millisecond: the gate is mostly held for less, and starting a thread takes that long."""
    for pause in _PAUSES_SECONDS:
        time.sleep(pause)
        if try_lock(fd, byte, shared=shared):
            return True
    return False


def _holders(fd: int, byte: int) -> str:
    """Return the processes that hold a lock, in words. A wait at the gate is one for both bytes of the pool lock."""
    found = filelock.holders(fd, *((GATE, POOL) if byte == GATE else (byte,)))
    words = [
        f"another thread of this process (pid {holder.pid})"
        if holder.pid == os.getpid()
        else f"{holder.name} (pid {holder.pid})"
        for holder in found
    ]
    return ", ".join(words) or "a process that cannot be seen from here"
