"""Device nodes where neither devtmpfs nor udev makes them: a container or a rescue system whose /dev is static.

Nodes are made from the numbers in /sys. The sticky bit, which has no meaning on a device, marks those that dmthin has
made; only these are removed, once their device is gone, by whichever process of dmthin removes a device next. A marked
node is certain only under the lock: a process that opens a device may have made it for a moment. The lock is a file in
that /dev, for root alone: any user may lock a directory.

On devtmpfs all of this is left to the kernel. Only the node of a control device whose module is not loaded is missing
there; it is made, as libdm and systemd do, and stays, for the kernel makes no other when opening it loads the module.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from dmthin.errors import Unavailable
from dmthin.kernel import devnumber, filelock, mount, sysfs
from dmthin.os_errors import RIGHTS, os_failure

DM_CONTROL = "/dev/mapper/control"
LOOP_CONTROL = "/dev/loop-control"

_DEV = Path("/dev")
_MADE = re.compile(r"(dm-|loop)\d+|loop-control")
_LOOP_MAJOR = 7
_MODE = 0o600
_LOCK = _DEV / ".dmthin.lock"
_USERS = 0
"""The byte of the lock's file that programs lock, shared, while they use a DM_CONTROL that dmthin has made."""
_MISC = {DM_CONTROL: ("device-mapper", "10:236"), LOOP_CONTROL: ("loop-control", "10:237")}
"""The names of the control nodes in /sys/class/misc, and their numbers in linux/miscdevice.h: opening a node of that
number loads the module, before which /sys does not have it."""


def ensure(node: str, dev: int) -> None:
    """Make the node of a block device that exists, if it is missing. `dev` is an `os.makedev` number.

    Do nothing on devtmpfs: the kernel would not remove a node that it has not made. Raise Unavailable if the node is
    another device's, NotPermitted, KernelError.
    """
    if not _is_static() or (_is_of(node, dev) and not _is_marked(node)):
        return
    try:
        with _locked():
            if _is_of(node, dev) or not Path(f"/sys/dev/block/{devnumber.written(dev)}").exists():
                return
            if _is_marked(node):
                Path(node).unlink()  # of a device that had the name before
            _make(node, stat.S_IFBLK, dev)
    except OSError as error:
        raise os_failure(error, f"make {node}", RIGHTS) from None


def open_block(node: str, flags: int, dev: int) -> int:
    """Return a descriptor of a block device. A node that is missing is made for the time of the call. Raise OSError.

    On devtmpfs the node stays: somebody has removed the kernel's.
    """
    return _open(node, flags, stat.S_IFBLK, dev)


def open_control(node: str) -> int:
    """Return a descriptor of DM_CONTROL or LOOP_CONTROL, in the same way. Raise OSError."""
    try:
        return os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return _open(node, os.O_RDWR, stat.S_IFCHR, _misc(node))


@contextmanager
def dm_control() -> Iterator[None]:
    """Have DM_CONTROL during the block, for programs: libdm makes it if it is missing, and leaves it.

    Raise OSError.
    """
    if not _is_static() or (Path(DM_CONTROL).exists() and not _is_marked(DM_CONTROL)):
        yield
        return
    users = _open_lock()
    try:
        with _locked():
            filelock.try_lock(users, _USERS, shared=True)  # nobody locks it otherwise
            if not Path(DM_CONTROL).exists():
                _make(DM_CONTROL, stat.S_IFCHR, _misc(DM_CONTROL))
        yield
    finally:
        os.close(users)
        remove_unused()


def remove_unused() -> None:
    """Remove the nodes that dmthin has made of devices that are gone. Do nothing where the kernel makes the nodes."""
    if not _is_static():
        return
    with suppress(OSError), _locked() as lock:
        for entry in os.scandir(_DEV):
            if _MADE.fullmatch(entry.name) and _is_marked(entry.path) and not _is_in_use(entry.path):
                Path(entry.path).unlink()
        if _is_marked(DM_CONTROL) and not filelock.is_locked(lock, _USERS):
            Path(DM_CONTROL).unlink()


def find(dev: int) -> Path | None:
    """Return a node directly in /dev of the block device with this number, whatever its name; None if there is none."""
    with suppress(OSError):
        for entry in os.scandir(_DEV):
            if _is_of(entry.path, dev):
                return Path(entry.path)
    return None


def _open(node: str, flags: int, kind: int, dev: int) -> int:
    try:
        return os.open(node, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        if not _is_static():
            Path(node).parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                os.mknod(node, kind | _MODE, dev)
            return os.open(node, flags | os.O_CLOEXEC)
        with _locked():
            if Path(node).exists():
                return os.open(node, flags | os.O_CLOEXEC)
            _make(node, kind, dev)
            try:
                return os.open(node, flags | os.O_CLOEXEC)
            finally:
                Path(node).unlink()


def _make(node: str, kind: int, dev: int) -> None:
    Path(node).parent.mkdir(exist_ok=True)
    try:
        os.mknod(node, kind | stat.S_ISVTX | _MODE, dev)
    except FileExistsError:
        hint = f"remove it, and let dmthin make a node of the number {devnumber.written(dev)}"
        raise Unavailable(f"{node} is the node of another device", hint=hint) from None


def _misc(node: str) -> int:
    name, usual = _MISC[node]
    return devnumber.parse(sysfs.attribute(f"class/misc/{name}/dev", f"look for {node}") or usual)


def _is_of(node: str, dev: int) -> bool:
    try:
        status = Path(node).stat()
    except OSError:
        return False
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == dev


def _is_marked(node: str) -> bool:
    try:
        mode = os.lstat(node).st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISVTX) and (stat.S_ISBLK(mode) or stat.S_ISCHR(mode))


def _is_in_use(node: str) -> bool:
    """Return whether the device of a node exists; a loop device does while it is bound to a file."""
    status = os.lstat(node)
    if stat.S_ISCHR(status.st_mode):  # a control node, left by a process that was killed while it opened it
        return False
    device = Path(f"/sys/dev/block/{devnumber.written(status.st_rdev)}")
    return (device / "loop/backing_file" if os.major(status.st_rdev) == _LOOP_MAJOR else device).exists()


@cache
def _is_static() -> bool:
    mounts = mount.at(_DEV)
    return not mounts or mounts[-1].fs_type != "devtmpfs"


def _open_lock() -> int:
    return os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextmanager
def _locked() -> Iterator[int]:
    """Hold the lock of a static /dev, and yield the descriptor of its file. Raise OSError."""
    fd = _open_lock()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
