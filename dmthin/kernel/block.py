"""Block devices and sparse files: sizes, signatures, holes; ioctl_blkdev and fallocate(2)."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.errors import InUse, Unavailable
from dmthin.kernel import process
from dmthin.kernel.ioctl import ioctl
from dmthin.os_errors import FILES, explain, os_failure
from dmthin.steps import step
from dmthin.units import METADATA_BLOCK

_BLKGETSIZE64 = 0x80081272
_BLKDISCARD = 0x1277
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of a file or device; failures become errors that name it."""
    fd = open_descriptor(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def open_descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a file or device, for the caller to close. Raises an error that names it."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise os_failure(error, f"open {path}") from None


def exists(path: Path) -> bool:
    """Whether there is something at `path`. Raises NotPermitted where this cannot be seen."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise os_failure(error, f"look at {path}") from None
    return True


def is_block_device(path: Path) -> bool:
    """Whether `path` leads to a block device."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def number(path: Path) -> str:
    """`major:minor` of a block device, the form for tables. Raises NotFound, Unavailable (no block device)."""
    try:
        status = path.stat()
    except OSError as error:
        raise os_failure(error, f"use {path}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise Unavailable(f"{path} is not a block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def node_of(device: str) -> Path:
    """The node of the device with this `major:minor`. Raises NotFound."""
    try:
        words = Path(f"/sys/dev/block/{device}/uevent").read_text().splitlines()
    except OSError as error:
        raise os_failure(error, f"find the block device {device}") from None
    return Path("/dev") / next(word.removeprefix("DEVNAME=") for word in words if word.startswith("DEVNAME="))


def describe(device: str) -> str:
    """What a person calls the device with this `major:minor`: the file of a loop, else the node."""
    try:
        return Path(f"/sys/dev/block/{device}/loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return str(node_of(device))


def require_unused(path: Path) -> None:
    """Raise InUse if a file system, a mapped device or the like has claimed this block device."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"the block device {path} is in use", hint=f"see: lsblk {path}") from None
        raise os_failure(error, f"open {path}") from None


def size(path: Path) -> int:
    """Bytes of a block device or a file."""
    with opened(path) as fd:
        status = os.fstat(fd)
        if not stat.S_ISBLK(status.st_mode):
            return status.st_size
        (count,) = struct.unpack("=Q", ioctl(fd, _BLKGETSIZE64, bytes(8), "BLKGETSIZE64", path))
        return int(count)


def read(path: Path, length: int, offset: int = 0) -> bytes:
    """Bytes from a device or file, fewer at its end."""
    with opened(path) as fd:
        return os.pread(fd, length, offset)


def signature(path: Path) -> str:
    """What blkid finds on a device or file (`ext4`, `LVM2_member`, `thin-pool metadata`), empty if nothing.

    blkid knows no thin-pool metadata, so a first block that is not all zero counts as data too.
    """
    found = process.run("blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", str(path), ok=(0, 2, 8))
    if words := found.stdout.split():
        return " ".join(words)
    return "data in its first block" if any(read(path, METADATA_BLOCK)) else ""


def wipe_first_block(path: Path) -> None:
    """Zero the first metadata block of a device, so that a pool would format it anew. InUse if it is claimed."""
    with step("wipe", path):
        require_unused(path)
        with opened(path, os.O_WRONLY | os.O_EXCL | os.O_DSYNC) as fd:
            os.pwrite(fd, bytes(METADATA_BLOCK), 0)
            os.fsync(fd)


def make_sparse(path: Path, length: int) -> None:
    """Make a file of holes, 0600, durable in its folder; a file that is there already is an error of the caller."""
    with step("make", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, length)
            os.fsync(fd)
        except OSError as error:
            raise os_failure(error, f"make {path} of {length} bytes") from None
        finally:
            os.close(fd)
        sync_folder(path.parent)


def grow_sparse(path: Path, length: int) -> None:
    """Grow a file by a hole; it never gets smaller."""
    with step("grow", path), opened(path, os.O_RDWR) as fd:
        if os.fstat(fd).st_size < length:
            try:
                os.ftruncate(fd, length)
                os.fsync(fd)
            except OSError as error:
                raise os_failure(error, f"grow {path} to {length} bytes") from None


def remove_file(path: Path) -> None:
    """Remove a file, durably; fine if it is gone."""
    with step("remove", path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


def remove_folders(path: Path) -> None:
    """Remove a folder and the empty folders in it; what is not empty stays."""
    with step("remove", path), suppress(OSError):
        for folder in path.iterdir():
            with suppress(OSError):
                folder.rmdir()
        path.rmdir()


def allocated(path: Path) -> int:
    """Bytes that a file occupies on its file system, whatever its length."""
    return path.stat().st_blocks * 512


def punch(fd: int, offset: int, length: int) -> None:
    """Give a range of an open file back to its file system; it reads as zeros afterwards."""
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        raise explain(ctypes.get_errno(), f"cannot punch a hole of {length} bytes", FILES)


def discard(fd: int, offset: int, length: int) -> None:
    """Tell an open block device that a range is not needed (BLKDISCARD). Raises KernelError, EOPNOTSUPP for one."""
    try:
        ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length), "BLKDISCARD", f"{offset} {length}")
    except OSError as error:
        raise os_failure(error, f"discard {length} bytes") from None


def sync_file_system(path: Path) -> None:
    """Write everything of a mounted file system out (syncfs(2)); since Linux 5.8 it tells of writes that failed."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        _sync_file_system(fd, f"write out the file system at {path}")


def sync_root(root: int, name: str) -> None:
    """`sync_file_system` for a descriptor of a root (O_PATH will do), which errors call `name`."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        _sync_file_system(fd, f"write out {name}")
    finally:
        os.close(fd)


def _sync_file_system(fd: int, doing: str) -> None:
    if _libc.syncfs(fd):
        raise explain(ctypes.get_errno(), f"cannot {doing}", FILES)


def free_space(path: Path) -> int:
    """Bytes free on the file system of a path, root's reserve included, since it is root who writes."""
    figures = os.statvfs(path)
    return figures.f_bfree * figures.f_frsize


def sync_data(path: Path) -> None:
    """Make what has been written to a file durable, whoever wrote it (fdatasync(2))."""
    with opened(path) as fd:
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise os_failure(error, f"write {path} out") from None


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
