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
from dmthin.kernel import devnode, devnumber, process, sysfs
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
    """Open a file or device during the block, and yield the descriptor. Raise NotFound, NotPermitted, KernelError."""
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
    """Return whether there is something at `path`. Raise NotPermitted where this cannot be seen, KernelError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise os_failure(error, f"look at {path}") from None
    return True


def is_block_device(path: Path) -> bool:
    """Return whether `path` leads to a block device."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def number(path: Path) -> str:
    """Return `major:minor` of a block device, as tables have it. Raise NotFound, Unavailable (no block device)."""
    try:
        status = path.stat()
    except OSError as error:
        raise os_failure(error, f"use {path}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise Unavailable(f"{path} is not a block device")
    return devnumber.written(status.st_rdev)


def node_of(device: str) -> Path:
    """Return the node of the device with this `major:minor`: the kernel's, or another one in /dev if that is missing.

    Raise NotFound.
    """
    try:
        words = Path(f"/sys/dev/block/{device}/uevent").read_text().splitlines()
    except OSError as error:
        sysfs.require_mounted()
        raise os_failure(error, f"find the block device {device}") from None
    node = Path("/dev") / next(word.removeprefix("DEVNAME=") for word in words if word.startswith("DEVNAME="))
    return node if node.exists() else devnode.find(devnumber.parse(device)) or node


def mapped_name(device: str) -> str:
    """Return the name of the mapped device with this `major:minor`. Raise NotFound for another block device."""
    try:
        return Path(f"/sys/dev/block/{device}/dm/name").read_text().rstrip("\n")
    except OSError as error:
        raise os_failure(error, f"find the mapped device {device}") from None


def describe(device: str) -> str:
    """Return what messages call the device with this `major:minor`: the file of a loop, else the node.

    Raise NotFound.
    """
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
    """Return the bytes of a block device or a file. Raise NotFound, NotPermitted."""
    with opened(path) as fd:
        status = os.fstat(fd)
        if not stat.S_ISBLK(status.st_mode):
            return status.st_size
        (count,) = struct.unpack("=Q", ioctl(fd, _BLKGETSIZE64, bytes(8), "BLKGETSIZE64", path))
        return int(count)


def read(path: Path, length: int, offset: int = 0) -> bytes:
    """Return bytes of a device or file, fewer at its end. Raise NotFound, NotPermitted, OSError."""
    with opened(path) as fd:
        return os.pread(fd, length, offset)


def signature(path: Path) -> str:
    """Return what blkid(8) finds on a device or file, such as `ext4` or `LVM2_member`, empty if nothing.

    blkid does not know thin-pool metadata, so a first block that is not all zeros counts as data too. Raise NotFound,
    NotPermitted, ToolFailed, TimeLimit, Unavailable (no blkid).
    """
    found = process.run("blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", str(path), ok=(0, 2, 8))
    if words := found.stdout.split():
        return " ".join(words)
    return "data in its first block" if any(read(path, METADATA_BLOCK)) else ""


def wipe_first_block(path: Path) -> None:
    """Zero the first metadata block of a device, so that a pool formats it. Raise InUse if it is claimed, NotFound."""
    with step("wipe", path):
        require_unused(path)
        with opened(path, os.O_WRONLY | os.O_EXCL | os.O_DSYNC) as fd:
            os.pwrite(fd, bytes(METADATA_BLOCK), 0)
            os.fsync(fd)


def make_sparse(path: Path, length: int) -> None:
    """Make a file that is one hole of `length` bytes, mode 0600, durably. The caller has checked that there is none.

    Raise NoDataSpace (also for a length that the file system does not allow), OSError.
    """
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
    """Grow a file by a hole to `length` bytes, durably; it never gets smaller. Raise NoDataSpace, NotFound."""
    with step("grow", path), opened(path, os.O_RDWR) as fd:
        if os.fstat(fd).st_size < length:
            try:
                os.ftruncate(fd, length)
                os.fsync(fd)
            except OSError as error:
                raise os_failure(error, f"grow {path} to {length} bytes") from None


def remove_file(path: Path) -> None:
    """Remove a file, durably, if it is there. Raise OSError."""
    with step("remove", path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


def remove_folders(path: Path) -> None:
    """Remove a folder and the folders in it, if they are empty."""
    with step("remove", path), suppress(OSError):
        for folder in path.iterdir():
            with suppress(OSError):
                folder.rmdir()
        path.rmdir()


def allocated(path: Path) -> int:
    """Return the bytes that a file occupies on its file system, which a hole does not."""
    return path.stat().st_blocks * 512


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole of a range of an open file: its blocks are free, and it reads as zeros. Raise KernelError."""
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        raise explain(ctypes.get_errno(), f"cannot punch a hole of {length} bytes", FILES)


def discard(fd: int, offset: int, length: int) -> None:
    """Discard a range of an open block device (BLKDISCARD). Raise KernelError, with EOPNOTSUPP if it takes none."""
    try:
        ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length), "BLKDISCARD", f"{offset} {length}")
    except OSError as error:
        raise os_failure(error, f"discard {length} bytes") from None


def sync_file_system(path: Path) -> None:
    """Sync a mounted file system (syncfs(2)). Since Linux 5.8 that reports writes that have failed.

    Raise NoDataSpace, KernelError, NotFound.
    """
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        _sync_file_system(fd, f"write out the file system at {path}")


def sync_root(root: int, name: str) -> None:
    """Sync the file system of an open root directory (O_PATH will do), which errors call `name`.

    Raise NoDataSpace, KernelError.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        _sync_file_system(fd, f"write out {name}")
    finally:
        os.close(fd)


def _sync_file_system(fd: int, doing: str) -> None:
    if _libc.syncfs(fd):
        raise explain(ctypes.get_errno(), f"cannot {doing}", FILES)


def free_space(path: Path) -> int:
    """Return the free bytes of the file system of a path, with the reserve for root, since the writer is root."""
    figures = os.statvfs(path)
    return figures.f_bfree * figures.f_frsize


def sync_data(path: Path) -> None:
    """Sync the data of a file, also what other processes have written (fdatasync(2)).

    Raise NoDataSpace, KernelError, NotFound.
    """
    with opened(path) as fd:
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise os_failure(error, f"write {path} out") from None


def sync_folder(path: Path) -> None:
    """Sync the names in a folder. Raise NotFound, OSError."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
