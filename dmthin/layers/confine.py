"""Path resolution confined to a root directory, and the open directories below it.

Parent directories are resolved by openat2(2) with RESOLVE_IN_ROOT: symbolic links among them are followed within the
root, as after chroot(2), and `..` stops at it. All other calls are relative to the descriptor of a parent directory
and do not follow symbolic links.
"""

import os
import stat

from dmthin.kernel.openat import DIRECTORY, open_below, open_entry
from dmthin.layers.tree_removal import KeepPredicate, remove_tree, scan
from dmthin.layers.xattrs import ACL_DEFAULT

_CACHED = 64
"""Directories kept open, each with its descriptor."""

_SPECIAL = frozenset((b"", b".", b".."))

MAX_PATH = 4095
"""The longest path in bytes that the kernel accepts (PATH_MAX without its NUL): a depth of at most 2048."""


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return the parent and the last component of a path, normalized lexically as in Docker (Go's filepath.Clean).

    The path is taken from the root, and `..` components beyond the root are dropped. The root itself is (b"", b"").
    """
    parts = path.split(b"/")
    if not _SPECIAL.isdisjoint(parts):
        kept: list[bytes] = []
        for part in parts:
            if part not in _SPECIAL:
                kept.append(part)
            elif part == b".." and kept:
                kept.pop()
        parts = kept
    if not parts:
        return b"", b""
    name = parts.pop()
    return b"/".join(parts), name


class OpenDirectory:
    """An open directory and the times to restore on it.

    Code that adds or removes a name in it must set `dirty`. Code that changes its extended attributes must call
    `forget_default_acl`.
    """

    __slots__ = ("_has_default_acl", "atime_ns", "dirty", "fd", "identity", "mtime_ns")

    def __init__(self, fd: int, info: os.stat_result) -> None:
        self.fd = fd
        self.identity = (info.st_dev, info.st_ino)
        self.atime_ns = info.st_atime_ns
        self.mtime_ns = info.st_mtime_ns
        self.dirty = False
        self._has_default_acl: bool | None = None

    @property
    def has_default_acl(self) -> bool:
        """Whether new inodes in it inherit access control lists from it (acl(5))."""
        if self._has_default_acl is None:
            try:
                self._has_default_acl = bool(os.getxattr(self.fd, ACL_DEFAULT))
            except OSError:
                self._has_default_acl = False
        return self._has_default_acl

    def forget_default_acl(self) -> None:
        """Drop the cached `has_default_acl`, because extended attributes were changed."""
        self._has_default_acl = None

    def restore_times(self) -> None:
        """Set the recorded times if the directory is dirty. Raise OSError."""
        if self.dirty:
            os.utime(self.fd, ns=(self.atime_ns, self.mtime_ns))
            self.dirty = False


class ConfinedTree:
    """The directories below a root, opened on demand and cached.

    A directory must keep its modification time although entries are added to it later. While a directory is cached,
    its OpenDirectory records the time; when it is evicted, the time is written back to the inode, from where it is
    read again. So there is no list of all directories, however many there are. The cache is indexed by inode as well,
    so that two paths of one directory share one OpenDirectory.

    All methods raise OSError.
    """

    def __init__(self, root_fd: int) -> None:
        fd = os.open(b".", DIRECTORY, dir_fd=root_fd)
        self._root = OpenDirectory(fd, os.fstat(fd))
        self._by_path = {b"": self._root}
        self._by_inode = {self._root.identity: self._root}

    def close(self) -> None:
        """Restore all times and close all descriptors. Further calls do nothing."""
        try:
            self.evict()
            if self._by_path:
                self._root.restore_times()
        finally:
            if self._by_path:
                os.close(self._root.fd)
            self._by_path, self._by_inode = {}, {}

    def directory(self, path: bytes) -> OpenDirectory:
        """Return the directory at a normalized `path`, opened if it is not cached."""
        return self._by_path.get(path) or self.adopt(path, open_below(self._root.fd, path))

    def adopt(self, path: bytes, fd: int) -> OpenDirectory:
        """Add the directory at a normalized `path` to the cache, which takes over its descriptor `fd`."""
        found = OpenDirectory(fd, os.fstat(fd))
        known = self._by_inode.setdefault(found.identity, found)
        if known is not found:
            os.close(fd)
        self._by_path[path] = known
        return known

    def trim(self) -> None:
        """Evict all directories if the cache is full. The caller must not hold an OpenDirectory."""
        if len(self._by_path) > _CACHED:
            self.evict()

    def evict(self, keep: OpenDirectory | None = None) -> None:
        """Restore the times of all directories but the root and `keep`, and close them.

        Needed before a change that can make paths resolve to other directories. Raise OSError, once all are closed.
        """
        staying = {self._root.identity: self._root} if self._by_path else {}
        going = self._by_inode
        if keep is not None:
            staying[keep.identity] = keep
        self._by_inode = staying
        self._by_path = {b"": self._root} if staying else {}
        failure: OSError | None = None
        for directory in going.values():
            if directory.identity not in staying:
                try:
                    directory.restore_times()
                except OSError as error:
                    failure = error
                os.close(directory.fd)
        if failure is not None:
            raise failure

    def make_directory(self, path: bytes, *, owner: tuple[int, int] | None) -> OpenDirectory:
        """Return the directory at a normalized `path`; create it and its parents with mode 0755 where missing.

        New directories belong to `owner` (uid, gid), or to the caller.
        Raise FileExistsError if a component exists but does not resolve to a directory, such as a dangling link.
        """
        missing = []
        probe = path
        while True:
            try:
                base = self.directory(probe)
                break
            except FileNotFoundError:
                probe, name = split(probe)
                missing.append(name)
        fd = base.fd
        try:
            for name in reversed(missing):
                os.mkdir(name, 0o755, dir_fd=fd)
                if fd == base.fd:
                    base.dirty = True
                inner = open_entry(fd, name)
                if fd != base.fd:
                    os.close(fd)
                fd = inner
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, 0o755)
        except BaseException:
            if fd != base.fd:
                os.close(fd)
            raise
        return self.adopt(path, fd) if missing else base

    def remove(self, parent: OpenDirectory, name: bytes) -> None:
        """Remove `name` from `parent`, recursively.

        If it is a directory or a symbolic link, paths through it change: all but `parent` and the root are evicted.
        """
        kind = os.lstat(name, dir_fd=parent.fd).st_mode
        if stat.S_ISDIR(kind) or stat.S_ISLNK(kind):
            self.evict(keep=parent)
        parent.dirty = True
        if stat.S_ISDIR(kind):
            remove_tree(parent.fd, name)
        else:
            os.unlink(name, dir_fd=parent.fd)

    def empty(self, directory: OpenDirectory, keeps: KeepPredicate) -> None:
        """Remove everything in `directory` but what `keeps` selects. All but `directory` and the root are evicted."""
        self.evict(keep=directory)
        directory.dirty = True
        number = directory.identity[1]
        for name, is_directory in list(scan(directory.fd)):
            if is_directory:
                remove_tree(directory.fd, name, keeps)
            elif not keeps(number, name):
                os.unlink(name, dir_fd=directory.fd)
