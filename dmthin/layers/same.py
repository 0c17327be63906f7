"""Equality of one name in two trees, by metadata and, where that is not conclusive, by content."""

import errno
import os
import stat

from dmthin.layers.header import NANOSECONDS
from dmthin.layers.nodes import identity, open_file, proc_path
from dmthin.layers.xattrs import read_xattrs
from dmthin.units import KIB

_CHUNK = 256 * KIB


def same_time(one_ns: int, other_ns: int) -> bool:
    """Return whether two times are equal; only in seconds if one has no nanoseconds, as in a tar (Docker's rule)."""
    if one_ns == other_ns:
        return True
    one, one_rest = divmod(one_ns, NANOSECONDS)
    other, other_rest = divmod(other_ns, NANOSECONDS)
    return one == other and not (one_rest and other_rest)


def directories_differ(new_fd: int, old_fd: int, new: os.stat_result, old: os.stat_result) -> bool:
    """Return whether the attributes of two open directories differ, except their times. Raise OSError."""
    if _is_unchanged(new, old):
        return False
    return _owners_differ(new, old) or read_xattrs(new_fd, layer=True) != read_xattrs(old_fd, layer=True)


def leaves_differ(new_fd: int, old_fd: int, name: bytes, new: os.stat_result, old: os.stat_result) -> bool:
    """Return whether `name`, a directory in neither, differs between two open directories. Raise OSError.

    Compared are type, owner, mode, device number, size, modification time, link target and extended attributes; and,
    if all of these are equal although the inode was changed, the content.
    """
    if _is_unchanged(new, old):
        return False
    if _owners_differ(new, old) or new.st_size != old.st_size or new.st_rdev != old.st_rdev:
        return True
    if not same_time(new.st_mtime_ns, old.st_mtime_ns):
        return True
    if stat.S_ISLNK(new.st_mode) and os.readlink(name, dir_fd=new_fd) != os.readlink(name, dir_fd=old_fd):
        return True
    attributes = (read_xattrs(proc_path(fd, name), layer=True) for fd in (new_fd, old_fd))
    if next(attributes) != next(attributes):
        return True
    return stat.S_ISREG(new.st_mode) and not _same_content(new_fd, old_fd, name, new, old)


def _is_unchanged(new: os.stat_result, old: os.stat_result) -> bool:
    """Return whether this inode was not changed since the snapshot: any change would have set its change time."""
    return (
        new.st_ctime_ns == old.st_ctime_ns
        and new.st_ino == old.st_ino
        and new.st_mtime_ns == old.st_mtime_ns
        and new.st_size == old.st_size
        and new.st_mode == old.st_mode
    )


def _owners_differ(new: os.stat_result, old: os.stat_result) -> bool:
    return new.st_mode != old.st_mode or new.st_uid != old.st_uid or new.st_gid != old.st_gid


def _same_content(new_parent: int, old_parent: int, name: bytes, new: os.stat_result, old: os.stat_result) -> bool:
    """Return whether two files have the same content. Raise OSError, ESTALE if the new one was replaced."""
    new_fd = open_file(new_parent, name)
    try:
        if identity(os.fstat(new_fd)) != identity(new):
            raise OSError(errno.ESTALE, "replaced meanwhile")
        old_fd = open_file(old_parent, name)
        try:
            sparse = all(info.st_blocks * 512 < info.st_size for info in (new, old))
            return _same_data(new_fd, old_fd, new.st_size, sparse=sparse)
        finally:
            os.close(old_fd)
    finally:
        os.close(new_fd)


def _same_data(new: int, old: int, size: int, *, sparse: bool) -> bool:
    at = 0
    while at < size:
        if sparse:  # skip what is a hole in both
            at = min(_next_data(new, at, size), _next_data(old, at, size))
        piece = os.pread(new, _CHUNK, at)
        if piece != os.pread(old, _CHUNK, at):
            return False
        if not piece:
            break
        at += len(piece)
    return True


def _next_data(fd: int, at: int, size: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno == errno.EINVAL:
            return at
        raise
