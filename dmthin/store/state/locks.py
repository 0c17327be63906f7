"""The locks of a store, between processes and threads: bytes of one file, locked by open file descriptions.

They die with their holder, so there is nothing to clean up. Each change of a volume holds the pool lock shared, each
change of the pool itself holds it exclusively. Each volume has a lock, and a suspend lock. Order: volumes, suspend
locks, the pool lock. While the pool lock is held, a volume's lock may only be tried.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.kernel import filelock
from dmthin.os_errors import os_failure
from dmthin.store.state import lock_waits
from dmthin.store.state.files import LOCK_FILE, missing
from dmthin.store.state.lock_waits import BASE, METADATA_SNAPSHOT, POOL, POOL_QUEUE, SUSPEND, VOLUME


class Lock:
    """A lock on an open file of its own; `release` may be called twice.

    One that is `inherited` is released only when the last process that has the file open closes it.
    """

    def __init__(self, fd: int, held: set[int], byte: int, *, inherited: bool = False) -> None:
        self.fd = fd
        self.byte = byte
        self._held = held
        self._inherited = inherited

    def release(self) -> None:
        """Release the lock."""
        if self.fd >= 0:
            self._held.discard(self.byte)
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

    Each method that waits raises TimeLimit as `limit_waits` says, and each raises NotFound where the store is gone,
    NotPermitted and KernelError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: set[int] = set()
        """The volumes' locks that this object has given: to try those again needs no system call."""

    @contextmanager
    def share_pool(self) -> Iterator[None]:
        """Hold the pool lock shared: the pool stays active, its table unchanged. Must be short, and not nested."""
        with self._take(POOL_QUEUE) as lock:
            # The exclusive holder has the queue too, so the pool lock is free of it now. One open file for both bytes
            # saves four system calls.
            self._lock(lock.fd, POOL, shared=True)
            filelock.unlock(lock.fd, POOL_QUEUE, 1)
            yield

    @contextmanager
    def own_pool(self) -> Iterator[None]:
        """Hold the pool lock exclusively.

        While this waits for the shared holders, it holds the queue, in which later requests of both kinds wait. Without
        that, an overlapping sequence of shared holders would keep it waiting for good. In turn, requests that wait
        already go first, so that repeated exclusive holds keep none of them waiting.
        """
        with self._take(POOL_QUEUE, gives_way=True), self._take(POOL):
            yield

    def volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock."""
        return self._note(self._take(VOLUME + device_id))

    def share_volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock, shared with others of this kind."""
        return self._take(VOLUME + device_id, shared=True)

    def try_volume(self, device_id: int) -> Lock | None:
        """Return a volume's lock, or None while another holds it."""
        if VOLUME + device_id in self._held:
            return None
        lock = self._try(VOLUME + device_id)
        return self._note(lock) if lock else None

    def suspend(self, device_id: int) -> Lock:
        """Wait for a volume's suspend lock, at most half a minute. Its holder may suspend and resume the device.

        Holders of the volume's shared lock exclude each other by this one. A process that inherits the lock's
        descriptor holds the lock too.
        """
        return self._take(SUSPEND + device_id, inherited=True)

    def metadata_snapshot(self) -> Lock:
        """Wait for the lock of the pool's one metadata snapshot."""
        return self._take(METADATA_SNAPSHOT)

    def base(self) -> Lock:
        """Wait for the base lock: its holder may make and remove bases."""
        return self._take(BASE)

    def _take(self, byte: int, *, shared: bool = False, inherited: bool = False, gives_way: bool = False) -> Lock:
        while True:
            lock = Lock(self._open(), self._held, byte, inherited=inherited)
            try:
                self._lock(lock.fd, byte, shared=shared, gives_way=gives_way)
                if self._is_current(lock.fd):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()

    def _lock(self, fd: int, byte: int, *, shared: bool, gives_way: bool = False) -> None:
        try:
            if gives_way:
                lock_waits.give_way(fd)
            if not lock_waits.try_lock(fd, byte, shared=shared):
                lock_waits.wait(fd, byte, shared=shared)
        except OSError as error:
            raise os_failure(error, f"lock {self._path}") from None

    def _try(self, byte: int) -> Lock | None:
        lock = Lock(self._open(), self._held, byte)
        try:
            if lock_waits.try_lock(lock.fd, byte):
                return lock
        except OSError as error:
            lock.release()
            raise os_failure(error, f"lock {self._path}") from None
        lock.release()
        return None

    def _note(self, lock: Lock) -> Lock:
        self._held.add(lock.byte)
        return lock

    def _is_current(self, fd: int) -> bool:
        """Return whether the locked file is still the store's: a store that was destroyed has lost its file."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        return now.st_ino == os.fstat(fd).st_ino

    def _open(self) -> int:
        """Return a new open file description: two locks on one description would be one lock."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise missing(self._path.parent, LOCK_FILE) from None
        except OSError as error:
            raise os_failure(error, f"open {self._path}") from None


def make_lock_file(path: Path) -> None:
    """Make the file if it is not there. Raise NotFound, NotPermitted, NoDataSpace."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise os_failure(error, f"make {path}") from None
