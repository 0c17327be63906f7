"""Locks on bytes of a file that belong to an open file description: fcntl(2), F_OFD_SETLK, Linux 3.15.

They hold between threads as between processes, and end with the last descriptor of the description.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from dmthin.kernel.cstruct import S32, CStruct

_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_OFD_LOCK = "OFDLCK"


class _Flock(NamedTuple):
    """struct flock of a 64-bit system. The kernel wants `pid` to be 0."""

    type: Annotated[int, "h"]
    whence: Annotated[int, "h"]
    start: Annotated[int, "q", 8]
    length: Annotated[int, "q"]
    pid: S32 = 0
    padding: S32 = 0


_FLOCK = CStruct("=", _Flock)


class LockHolder(NamedTuple):
    """A process that holds a lock, or has inherited its open file."""

    pid: int
    name: str


def try_lock(fd: int, byte: int, *, shared: bool = False) -> bool:
    """Lock one byte of an open file; False while a lock of another open file description is in the way.

    A lock that this description has on the byte becomes the one that is asked for. Raise OSError.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(_Flock(kind, os.SEEK_SET, byte, 1)))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(fd: int, byte: int) -> bool:
    """Return whether another open file description has a lock on one byte, shared or not. Raise OSError."""
    asked = _FLOCK.pack(_Flock(fcntl.F_WRLCK, os.SEEK_SET, byte, 1))
    return _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, asked)).type != fcntl.F_UNLCK


def unlock(fd: int, byte: int = 0, length: int = 0) -> None:
    """Release what this description has locked of some bytes, by default of all of the file. Raise OSError."""
    fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(_Flock(fcntl.F_UNLCK, os.SEEK_SET, byte, length)))


def holders(fd: int, *wanted: int) -> list[LockHolder]:
    """Return the processes that hold locks on some bytes of an open file, as far as /proc shows them to us.

    /proc/locks and F_OFD_GETLK give no process for such a lock; /proc/PID/fdinfo/FD lists the locks of each open file,
    with inode and bytes (proc(5)). Slow: it reads the descriptors of all processes that have a file of this name open.
    Where /proc is missing, there are none.
    """
    found: list[LockHolder] = []
    inode = os.fstat(fd).st_ino
    try:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115, PTH119
        entries = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return found
    for pid in sorted(int(entry) for entry in entries if entry.isdecimal()):
        if any(_holds(info, inode, wanted) for info in _open_files(pid, name)):
            found.append(LockHolder(pid, _command(pid)))
    return found


def _open_files(pid: int, name: str) -> Iterator[str]:
    """Yield what fdinfo says of each file of this name that a process has open."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:
        return
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{pid}/fd/{descriptor}").endswith(f"/{name}"):  # noqa: PTH115
                with open(f"/proc/{pid}/fdinfo/{descriptor}", errors="replace") as info:
                    yield info.read()
        except OSError:
            continue


def _holds(info: str, inode: int, wanted: tuple[int, ...]) -> bool:
    """Return whether an fdinfo lists a lock on one of the bytes.

    Its lines are those of lock_get_status in fs/locks.c: `lock: 1: OFDLCK ADVISORY  WRITE -1 08:02:1234 17 17`.
    """
    for line in info.splitlines():
        if not (line.startswith("lock:") and _OFD_LOCK in line):
            continue
        *_, file, first, last = line.split()
        end = int(last) if last.isdecimal() else int(first)  # or EOF, which no lock here has
        if file.rpartition(":")[2] == str(inode) and any(int(first) <= byte <= end for byte in wanted):
            return True
    return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return "?"
