"""Locks between processes and threads: byte ranges of one file, held by open file descriptions (fcntl(2), F_OFD_SETLK).

They die with their holder, so there is nothing to clean up. Byte 1 stands for the pool, which every change of a volume
shares and every change of the pool itself has alone; byte VOLUME + N stands for the volume with device id N, byte
REST + N for its being held at rest. Order: volumes, rest, the pool; while the pool is held, a volume's lock may only be
tried.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.errors import NotFound, TimeLimit
from dmthin.os_errors import os_failure

_F_OFD_SETLK = 37
_F_OFD_SETLKW = 38
_FLOCK = struct.Struct("hhqqi4x")

_GATE = 0
_POOL = 1
_METADATA_SNAPSHOT = 2
_BASE = 3
_VOLUME = 16
_REST = 1 << 25
"""Above all volumes: a device id has 24 bits."""

_REST_SECONDS = 30.0
_REST_PAUSE_SECONDS = 0.005


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
        """Give the lock back."""
        if self.fd >= 0:
            self._held.discard(self.offset)
            # A child that was forked meanwhile has the same open file description, and closing ours would not do.
            if not self._inherited:
                with suppress(OSError):
                    fcntl.fcntl(self.fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Locks:
    """The locks of one store, in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: set[int] = set()
        """The volumes' locks that this object has given: to try those again needs no system call."""

    @contextmanager
    def share_pool(self) -> Iterator[None]:
        """Keep the pool as it is (active, its table unchanged) for a short step on a volume. Does not nest."""
        with self._take(_GATE) as lock:
            # Nobody owns the pool now, for that takes the gate. One open file for both saves four system calls.
            fcntl.fcntl(lock.fd, _F_OFD_SETLKW, _request(_POOL, shared=True))
            fcntl.fcntl(lock.fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _GATE, 1, 0))
            yield

    @contextmanager
    def own_pool(self) -> Iterator[None]:
        """Have the pool alone, to change it. Those who would share it queue at the gate, so that this one gets in."""
        with self._take(_GATE), self._take(_POOL):
            yield

    def volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock."""
        return self._note(self._take(_VOLUME + device_id))

    def share_volume(self, device_id: int) -> Lock:
        """Wait for a volume's lock, shared with others of this kind."""
        return self._take(_VOLUME + device_id, shared=True)

    def try_volume(self, device_id: int) -> Lock | None:
        """A volume's lock, None while another holds it."""
        if _VOLUME + device_id in self._held:
            return None
        lock = self._try(_VOLUME + device_id)
        return self._note(lock) if lock else None

    def rest(self, device_id: int) -> Lock:
        """Wait for the right to suspend and resume a volume's device, which those who share its lock take in turn.

        Whoever inherits the lock's descriptor has the lock as well. Raises TimeLimit after half a minute: who has it
        may wait for space in the pool, and for who gives it some.
        """
        deadline = time.monotonic() + _REST_SECONDS
        while (lock := self._try(_REST + device_id, inherited=True)) is None:
            if time.monotonic() > deadline:
                raise TimeLimit(
                    f"the volume with device id {device_id} has been suspended for more than {_REST_SECONDS:g} s",
                    hint="see: dmthin pool status",
                )
            time.sleep(_REST_PAUSE_SECONDS)
        return lock

    def metadata_snapshot(self) -> Lock:
        """Wait for the right to the pool's one metadata snapshot."""
        return self._take(_METADATA_SNAPSHOT)

    def base(self) -> Lock:
        """Wait for the right to make a base."""
        return self._take(_BASE)

    def _take(self, offset: int, *, shared: bool = False) -> Lock:
        while True:
            lock = Lock(self._open(), self._held, offset)
            try:
                fcntl.fcntl(lock.fd, _F_OFD_SETLKW, _request(offset, shared=shared))
                if self._is_current(lock.fd):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()

    def _try(self, offset: int, *, inherited: bool = False) -> Lock | None:
        lock = Lock(self._open(), self._held, offset, inherited=inherited)
        try:
            fcntl.fcntl(lock.fd, _F_OFD_SETLK, _request(offset, shared=False))
        except OSError as error:
            lock.release()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise os_failure(error, f"lock {self._path}") from None
        return lock

    def _note(self, lock: Lock) -> Lock:
        self._held.add(lock.offset)
        return lock

    def _is_current(self, fd: int) -> bool:
        """Whether the file that is locked is still the store's: a store that was destroyed takes its file along."""
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
    """Make the file if it is not there."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise os_failure(error, f"make {path}") from None


def _request(offset: int, *, shared: bool) -> bytes:
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    return _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)
