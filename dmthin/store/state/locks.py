"""The locks of a store, between processes and threads: bytes of one file, locked by open file descriptions.

They die with their holder, so there is nothing to clean up. Byte 1 is the pool lock: each change of a volume holds it
shared, each change of the pool itself exclusively. Byte VOLUME + N is the lock of the volume with device id N, byte
SUSPEND + N its suspend lock. Order: volumes, suspend locks, the pool lock. While the pool lock is held, a volume's lock
may only be tried.
"""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin import steps
from dmthin.errors import NotFound, TimeLimit
from dmthin.kernel import filelock
from dmthin.kernel.filelock import PendingLock
from dmthin.os_errors import os_failure

logger = logging.getLogger(__name__)

_GATE = 0
_POOL = 1
_METADATA_SNAPSHOT = 2
_BASE = 3
_VOLUME = 16
_SUSPEND = 1 << 25
"""Above all volumes: a device id has 24 bits."""

_NAMES = {
    _GATE: "the pool lock",
    _POOL: "the pool lock",
    _METADATA_SNAPSHOT: "the metadata snapshot lock",
    _BASE: "the base lock",
}

_SUSPEND_SECONDS = 30.0
"""How long a suspend lock is waited for at most: its holder may wait for space in the pool."""

_PAUSES_SECONDS = (0.00005, 0.0001, 0.0002, 0.0004)
_FIRST_WARNING_SECONDS = 5.0
_WARNING_SECONDS = 30.0

_limit = math.inf


def limit_waits(seconds: float) -> None:
    """Let no wait of this process for one lock take longer from now on; `math.inf` for no limit, which is the default.

    The wait then ends with TimeLimit. With 0 a lock that is not free is an error at once.
    """
    global _limit
    _limit = seconds


class Lock:
    """A lock on an open file of its own; `release` may be called twice.

    One that is `inherited` goes only with the last process that has the file open.
    """

    def __init__(self, fd: int, held: set[int], offset: int, *, inherited: bool = False) -> None:
        self.fd = fd
        self._held = held
        self.offset = offset
        self._inherited = inherited

    def release(self) -> None:
        """Release the lock."""
        if self.fd >= 0:
            self._held.discard(self.offset)
            # A child that was forked meanwhile has the same open file description, and closing ours would not do.
            if not self._inherited:
                with suppress(OSError):
                    filelock.unlock(self.fd)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Locks:
    """The locks of one store, in the file `path`.

    Each method that waits raises TimeLimit as `limit_waits` says, and NotFound where the store is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: set[int] = set()
        """The volumes' locks that this object has given: to try those again needs no system call."""

        self._abandoned: dict[tuple[int, bool], list[PendingLock]] = {}
        """By offset and whether shared: threads that still wait for a lock whose caller has given up."""

    @contextmanager
    def share_pool(self) -> Iterator[None]:
        """Hold the pool lock shared: the pool stays active, its table unchanged. Must be short, and not nested."""
        with self._take(_GATE) as lock:
            # The gate is held for as long as the pool lock is held exclusively, so that lock is free of writers now.
            # One open file for both saves four system calls.
            filelock.lock(lock.fd, _POOL, shared=True)
            _trace_taken(_POOL, shared=True)
            filelock.unlock(lock.fd, _GATE, 1)
            yield

    @contextmanager
    def own_pool(self) -> Iterator[None]:
        """Hold the pool lock exclusively.

        While this waits for those who share the lock, it holds the gate, at which all who come later queue. Without
        that, an overlapping sequence of shared holders would keep it waiting for good.
        """
        with self._take(_GATE), self._take(_POOL):
            yield

    def volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock."""
        return self._note(self._take(_VOLUME + device_id))

    def share_volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock, shared with others of this kind."""
        return self._take(_VOLUME + device_id, shared=True)

    def try_volume(self, device_id: int) -> Lock | None:
        """Return a volume's lock, or None while another holds it."""
        if _VOLUME + device_id in self._held:
            return None
        lock = self._try(_VOLUME + device_id)
        return self._note(lock) if lock else None

    def suspend(self, device_id: int) -> Lock:
        """Wait for a volume's suspend lock, at most half a minute. Its holder may suspend and resume the device.

        Those who share the volume's lock take this one in addition. A process that inherits the lock's descriptor has
        the lock as well.
        """
        return self._take(_SUSPEND + device_id, inherited=True)

    def metadata_snapshot(self) -> Lock:
        """Wait for the lock of the pool's one metadata snapshot."""
        return self._take(_METADATA_SNAPSHOT)

    def base(self) -> Lock:
        """Wait for the base lock: its holder may make and remove bases."""
        return self._take(_BASE)

    def _take(self, offset: int, *, shared: bool = False, inherited: bool = False) -> Lock:
        while True:
            lock = Lock(self._open(), self._held, offset, inherited=inherited)
            try:
                if not _try(lock.fd, offset, shared=shared):
                    self._wait(lock, shared=shared)
                if self._is_current(lock.fd):
                    return lock
            except OSError as error:
                lock.release()
                raise os_failure(error, f"lock {self._path}") from None
            except BaseException:
                lock.release()
                raise
            lock.release()

    def _wait(self, lock: Lock, *, shared: bool) -> None:
        """Wait for a lock that is not free. Raise TimeLimit, OSError."""
        begin, since = time.monotonic(), time.strftime("%H:%M:%S")
        name, limit = _name(lock.offset), _limit_of(lock.offset)
        waited, warn_after = 0.0, _FIRST_WARNING_SECONDS
        if not (limit > 0 and _retry(lock.fd, lock.offset, shared=shared)):
            if steps.verbosity:
                steps.report(f"lock: waiting for {name}")
            pending = self._pend(lock, shared=shared)
            try:
                while not pending.wait(max(0.0, min(warn_after, limit) - waited)):
                    waited = time.monotonic() - begin
                    if waited >= limit:
                        raise TimeLimit(
                            f"waited {limit:g} s for {name}, held by {_holders(pending.fd, lock.offset)}",
                            hint="see what that does, or wait longer with --lock-timeout",
                        )
                    if waited >= warn_after:
                        holders = _holders(pending.fd, lock.offset)
                        logger.warning("waiting for %s since %s (%.0f s), held by %s", name, since, waited, holders)
                        warn_after += _WARNING_SECONDS
            except BaseException:
                self._abandon(pending, lock.offset, shared=shared)
                raise
            lock.fd = pending.fd
        if steps.verbosity:
            steps.report(f"lock: {name} after {(time.monotonic() - begin) * 1000:.2f} ms")

    def _pend(self, lock: Lock, *, shared: bool) -> PendingLock:
        """A thread that waits for a lock, on the lock's open file: an abandoned one if there is one.

        So there are never more of them than there were callers at a time, however long a lock is not released.
        """
        fd, lock.fd = lock.fd, -1
        abandoned = self._abandoned.get((lock.offset, shared), [])
        while abandoned:
            pending = abandoned.pop()
            if pending.adopt():
                os.close(fd)
                return pending
        return PendingLock(fd, lock.offset, shared=shared)

    def _abandon(self, pending: PendingLock, offset: int, *, shared: bool) -> None:
        pending.abandon()
        others = self._abandoned.get((offset, shared), [])
        self._abandoned[offset, shared] = [other for other in others if not other.has_ended] + [pending]

    def _try(self, offset: int) -> Lock | None:
        lock = Lock(self._open(), self._held, offset)
        try:
            if _try(lock.fd, offset, shared=False):
                return lock
        except OSError as error:
            lock.release()
            raise os_failure(error, f"lock {self._path}") from None
        lock.release()
        return None

    def _note(self, lock: Lock) -> Lock:
        self._held.add(lock.offset)
        return lock

    def _is_current(self, fd: int) -> bool:
        """Return whether the locked file is still the store's: a store that was destroyed has lost its file."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        return now.st_ino == os.fstat(fd).st_ino

    def _open(self) -> int:
        """A new open file description for each lock, for two locks on one description would be one lock."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{self._path.parent} is not a store", hint="make one with: dmthin pool create") from None
        except OSError as error:
            raise os_failure(error, f"open {self._path}") from None


def make_lock_file(path: Path) -> None:
    """Make the file if it is not there. Raise NotFound, NotPermitted, NoDataSpace."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise os_failure(error, f"make {path}") from None


def _name(offset: int) -> str:
    if offset >= _SUSPEND:
        return f"the suspend lock of volume {offset - _SUSPEND}"
    return _NAMES.get(offset) or f"the lock of volume {offset - _VOLUME}"


def _limit_of(offset: int) -> float:
    return min(_limit, _SUSPEND_SECONDS) if offset >= _SUSPEND else _limit


def _try(fd: int, offset: int, *, shared: bool) -> bool:
    """Lock a byte of an open file if it is free, by one system call. Raise OSError."""
    if not filelock.try_lock(fd, offset, shared=shared):
        return False
    if offset != _GATE:  # of which the pool lock follows
        _trace_taken(offset, shared=shared)
    return True


def _trace_taken(offset: int, *, shared: bool) -> None:
    if steps.verbosity >= steps.REQUESTS:
        steps.report(f"lock: {_name(offset)}{', shared' if shared else ''}")


def _retry(fd: int, offset: int, *, shared: bool) -> bool:
    """Try a few times within a millisecond. Most who have the gate have it for less; a thread is dear against that."""
    for pause in _PAUSES_SECONDS:
        time.sleep(pause)
        if _try(fd, offset, shared=shared):
            return True
    return False


def _holders(fd: int, offset: int) -> str:
    """The processes that hold a lock, in words. Those who queue at the gate wait for both of its bytes."""
    found = filelock.holders(fd, *((_GATE, _POOL) if offset == _GATE else (offset,)))
    words = [
        f"another thread of this process (pid {holder.pid})"
        if holder.pid == os.getpid()
        else f"{holder.name} (pid {holder.pid})"
        for holder in found
    ]
    return ", ".join(words) or "a process that cannot be seen from here"
