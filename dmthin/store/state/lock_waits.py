"""Waits for the locks of a store: which byte is which lock, the limit of a wait, and what is reported meanwhile."""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dmthin import steps
from dmthin.errors import TimeLimit
from dmthin.kernel import filelock

logger = logging.getLogger(__name__)

POOL_QUEUE = 0
"""Held while the pool lock is waited for, and for as long as it is held exclusively."""

POOL = 1
METADATA_SNAPSHOT = 2
BASE = 3
POOL_WAITERS = 4
"""Held shared by each process that waits for the pool lock: see `give_way`."""

VOLUME = 16
"""The first volume's."""

SUSPEND = 1 << 25
"""The first volume's, beyond all of VOLUME: a device id has 24 bits."""

_NAMES = {
    POOL_QUEUE: "the pool lock",
    POOL: "the pool lock",
    METADATA_SNAPSHOT: "the metadata snapshot lock",
    BASE: "the base lock",
}

_SUSPEND_SECONDS = 30.0
"""How long a suspend lock is waited for at most: its holder may wait for space in the pool."""

_FIRST_PAUSE_SECONDS = 0.00005
_SHORT_PAUSE_SECONDS = 0.0004
_LONGEST_PAUSE_SECONDS = 0.01
_GIVE_WAY_SECONDS = 0.05
_FIRST_WARNING_SECONDS = 5.0
_WARNING_SECONDS = 30.0

_limit = math.inf
_local = threading.local()


def limit_waits(seconds: float) -> None:
    """Let no wait of this process for one lock take longer from now on; `math.inf`, the default, is no limit.

    The wait then ends with TimeLimit. With 0 a lock that is not free within a millisecond is an error.
    """
    global _limit
    _limit = seconds


def try_lock(fd: int, byte: int, *, shared: bool = False) -> bool:
    """Lock a byte of an open file if it is free, by one system call; return whether it was. Raise OSError."""
    if not filelock.try_lock(fd, byte, shared=shared):
        return False
    if byte != POOL_QUEUE:  # after which the pool lock is taken
        trace_taken(byte, shared=shared)
    return True


def trace_taken(byte: int, *, shared: bool) -> None:
    """Trace that a lock is held now."""
    if steps.verbosity >= steps.REQUESTS:
        steps.report(f"lock: {_name(byte)}{', shared' if shared else ''}")


def wait(fd: int, byte: int, *, shared: bool = False) -> None:
    """Wait for a lock that is not free, and take it. Raise TimeLimit, OSError.

    It is tried again and again, with pauses that rise to 10 ms: F_OFD_SETLKW takes no time limit, and a thread that
    waits in it cannot be ended. The tries of the first millisecond are made whatever the limit: most locks are held for
    less.
    """
    begin, since = time.monotonic(), time.strftime("%H:%M:%S")
    limit = math.inf if getattr(_local, "unlimited", False) else _limit
    limit = min(limit, _SUSPEND_SECONDS) if byte >= SUSPEND else limit
    pause, warn_after = _FIRST_PAUSE_SECONDS, _FIRST_WARNING_SECONDS
    if steps.verbosity:
        steps.report(f"lock: waiting for {_name(byte)}")
    if byte == POOL_QUEUE:
        filelock.try_lock(fd, POOL_WAITERS, shared=True)
    while True:
        time.sleep(pause)
        if filelock.try_lock(fd, byte, shared=shared):
            break
        waited = time.monotonic() - begin
        if waited >= limit and pause > _SHORT_PAUSE_SECONDS:
            hint = (
                "see: dmthin pool status"
                if limit == _SUSPEND_SECONDS
                else "see what that does, or raise --lock-timeout"
            )
            raise TimeLimit(f"waited {limit:g} s for {_name(byte)}, held by {_holders(fd, byte)}", hint=hint)
        if waited >= warn_after:
            holders = _holders(fd, byte)
            logger.warning("waiting for %s since %s (%.0f s), held by %s", _name(byte), since, waited, holders)
            warn_after += _WARNING_SECONDS
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    if byte == POOL_QUEUE:
        filelock.unlock(fd, POOL_WAITERS, 1)
    if steps.verbosity:
        steps.report(f"lock: {_name(byte)} after {(time.monotonic() - begin) * 1000:.2f} ms")


def give_way(fd: int) -> None:
    """Let the processes that wait for the pool lock take it first, for 50 ms at most. Raise OSError.

    To be called before it is taken exclusively: trim takes it again microseconds after each release, and a process that
    tries every 10 ms would find it free once in a minute.
    """
    until = time.monotonic() + _GIVE_WAY_SECONDS
    while filelock.is_locked(fd, POOL_WAITERS) and time.monotonic() < until:
        time.sleep(_SHORT_PAUSE_SECONDS)


@contextmanager
def unlimited() -> Iterator[None]:
    """Let this thread wait without a limit in the block: for clean-up, which must not be left half done."""
    before = getattr(_local, "unlimited", False)
    _local.unlimited = True
    try:
        yield
    finally:
        _local.unlimited = before


def _name(byte: int) -> str:
    if byte >= SUSPEND:
        return f"the suspend lock of volume {byte - SUSPEND}"
    return _NAMES.get(byte) or f"the lock of volume {byte - VOLUME}"


def _holders(fd: int, byte: int) -> str:
    """Return the processes that hold a lock, in words. A wait in the pool lock's queue is one for both of its bytes."""
    found = filelock.holders(fd, *((POOL_QUEUE, POOL) if byte == POOL_QUEUE else (byte,)))
    words = [
        f"another thread of this process (pid {holder.pid})"
        if holder.pid == os.getpid()
        else f"{holder.name} (pid {holder.pid})"
        for holder in found
    ]
    return ", ".join(words) or "a process that cannot be seen from here"
