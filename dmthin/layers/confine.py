"""A tree from which no path leads out, and the open directories in it.

Parents are resolved by openat2(2), with RESOLVE_IN_ROOT: a symbolic link among them is followed inside the
root, as after chroot, and `..` stops there. Everything else happens relative to the descriptor of a parent
and follows no link.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dmthin.kernel.openat import DIRECTORY, open_below, open_entry

_CACHED = 64
_ODD = frozenset((b"", b".", b".."))

MAX_PATH = 4095
"""Bytes of a path that the kernel takes (PATH_MAX without its NUL), so no tree is deeper than 2048."""


def split(path: bytes) -> tuple[bytes, bytes]:
    """The parent and the last component of a name, cleaned as Docker does: from the root, `..` by letter.

    A `..` beyond the root is dropped. The root itself is (b"", b"").
    """
    parts = path.split(b"/")
    if not _ODD.isdisjoint(parts):
        kept: list[bytes] = []
        for part in parts:
            if part not in _ODD:
                kept.append(part)
            elif part == b".." and kept:
                kept.pop()
        parts = kept
    if not parts:
        return b"", b""
    name = parts.pop()
    return b"/".join(parts), name


Keeps = Callable[[int, bytes], bool]
"""Whether the name in the directory with this inode number is to stay when all around it is removed."""


def keep_nothing(directory: int, name: bytes) -> bool:
    """No name stays."""
    return False


class OpenDirectory:
    """An open directory and the times that it gets back once we are through with it.

    Whoever adds or removes a name in it sets `dirty`; whoever changes its attributes says so.
    """

    __slots__ = ("_hands_down", "atime_ns", "dirty", "fd", "identity", "mtime_ns")

    def __init__(self, fd: int, info: os.stat_result) -> None:
        self.fd = fd
        self.identity = (info.st_dev, info.st_ino)
        self.atime_ns = info.st_atime_ns
        self.mtime_ns = info.st_mtime_ns
        self.dirty = False
        self._hands_down: bool | None = None

    @property
    def hands_down(self) -> bool:
        """Whether what is made in it gets an access control list of it, without being asked (acl(5))."""
        if self._hands_down is None:
            try:
                self._hands_down = bool(os.getxattr(self.fd, "system.posix_acl_default"))
            except OSError:
                self._hands_down = False
        return self._hands_down

    def forget_attributes(self) -> None:
        """Ask for them again when they are needed, because they were changed."""
        self._hands_down = None

    def settle(self) -> None:
        """Put the times right."""
        if self.dirty:
            os.utime(self.fd, ns=(self.atime_ns, self.mtime_ns))
            self.dirty = False


class ConfinedTree:
    """The directories below a root, opened as they are asked for and kept open while they may be needed.

    A directory's modification time must survive what is put into it later. Each directory keeps the time that
    it is to have in its own inode, or in its OpenDirectory while that is in the cache, and gets it back when
    it leaves the cache: no list of all directories is needed, however many there are. Directories are known
    by inode, so that two paths to one directory share one record of its times.

    All methods raise OSError, untranslated.
    """

    def __init__(self, root_fd: int) -> None:
        fd = os.open(b".", DIRECTORY, dir_fd=root_fd)
        self._root = OpenDirectory(fd, os.fstat(fd))
        self._by_path = {b"": self._root}
        self._by_inode = {self._root.identity: self._root}

    def close(self) -> None:
        """Settle all times and close; may be called twice."""
        try:
            self.forget()
            if self._by_path:
                self._root.settle()
        finally:
            if self._by_path:
                os.close(self._root.fd)
            self._by_path, self._by_inode = {}, {}

    def directory(self, path: bytes) -> OpenDirectory:
        """The directory at a cleaned `path`."""
        return self._by_path.get(path) or self.adopt(path, open_below(self._root.fd, path))

    def adopt(self, path: bytes, fd: int) -> OpenDirectory:
        """Take over `fd`, the directory at a cleaned `path`."""
        found = OpenDirectory(fd, os.fstat(fd))
        known = self._by_inode.setdefault(found.identity, found)
        if known is not found:
            os.close(fd)
        self._by_path[path] = known
        return known

    def trim(self) -> None:
        """Forget all directories if there are many; to be called while nobody holds one."""
        if len(self._by_path) > _CACHED:
            self.forget()

    def forget(self, keep: OpenDirectory | None = None) -> None:
        """Settle and close all but the root and `keep`, because paths may lead elsewhere from now on."""
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
                    directory.settle()
                except OSError as error:
                    failure = error
                os.close(directory.fd)
        if failure is not None:
            raise failure

    def make_directory(self, path: bytes, *, owner: tuple[int, int] | None) -> OpenDirectory:
        """The directory at a cleaned `path`, made with 0755 where it is missing, and its parents too.

        What is made belongs to `owner`, user and group, or to the caller.
        FileExistsError: something on the way is no directory and leads to none, such as a dangling link.
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
        """Remove `name` from `parent` with all below it; if that changes paths, only `parent` stays open."""
        kind = os.lstat(name, dir_fd=parent.fd).st_mode
        if stat.S_ISDIR(kind) or stat.S_ISLNK(kind):
            self.forget(keep=parent)
        parent.dirty = True
        if stat.S_ISDIR(kind):
            remove_tree(parent.fd, name)
        else:
            os.unlink(name, dir_fd=parent.fd)

    def empty(self, directory: OpenDirectory, keeps: Keeps) -> None:
        """Remove all that `directory` holds but what `keeps` names; only `directory` and the root stay open."""
        self.forget(keep=directory)
        directory.dirty = True
        number = directory.identity[1]
        for name, is_directory in list(_listed(directory.fd)):
            if is_directory:
                remove_tree(directory.fd, name, keeps)
            elif not keeps(number, name):
                os.unlink(name, dir_fd=directory.fd)


@dataclass(slots=True)
class _Frame:
    """A directory that is being emptied: the inode above it, its name there, the directories left to do in it."""

    above: tuple[int, int]
    name: bytes
    inner: list[bytes]
    before: os.stat_result
    changed: bool
    kept: bool


def remove_tree(parent_fd: int, name: bytes, keeps: Keeps = keep_nothing) -> bool:
    """Remove the directory `name` and all below it, however deep: one descriptor, no recursion.

    What `keeps` names stays, and so do the directories on the way to it, with the times that they have; a directory
    that is kept itself is emptied of the rest. Whether `name` itself is gone is returned. No link is followed; a
    mount point is an error (EXDEV), and what is mounted there stays.
    """
    fd = open_entry(parent_fd, name)
    try:
        frames = [_frame(fd, os.fstat(parent_fd), name, keeps)]
        while True:
            frame = frames[-1]
            if frame.inner:
                name = frame.inner.pop()
                child = open_entry(fd, name)
                info = os.fstat(fd)
                os.close(fd)
                fd = child
                frames.append(_frame(fd, info, name, keeps))
                continue
            frames.pop()
            stays = frame.kept or keeps(frame.above[1], frame.name)
            if stays and frame.changed:
                os.utime(fd, ns=(frame.before.st_atime_ns, frame.before.st_mtime_ns))
            fd = ascend(fd, frame.above)
            if not stays:
                os.rmdir(frame.name, dir_fd=fd)
            if not frames:
                return not stays
            frames[-1].kept |= stays
            frames[-1].changed |= not stays
    finally:
        os.close(fd)


def ascend(fd: int, expected: tuple[int, int]) -> int:
    """The parent of the directory `fd`, which is closed; `expected` is the (device, inode) it must have.

    Raises OSError with ESTALE where the directory was moved meanwhile.
    """
    above = os.open(b"..", DIRECTORY, dir_fd=fd)
    info = os.fstat(above)
    if (info.st_dev, info.st_ino) != expected:
        os.close(above)
        raise OSError(errno.ESTALE, "a directory was moved meanwhile")
    os.close(fd)
    return above


def _frame(fd: int, parent: os.stat_result, name: bytes, keeps: Keeps) -> _Frame:
    """What is left to do in the open directory `name` once all but directories is unlinked in it."""
    before = os.fstat(fd)
    frame = _Frame((parent.st_dev, parent.st_ino), name, [], before, False, False)
    for inner, is_directory in list(_listed(fd)):
        if is_directory:
            frame.inner.append(inner)
        elif keeps(before.st_ino, inner):
            frame.kept = True
        else:
            os.unlink(inner, dir_fd=fd)
            frame.changed = True
    return frame


def _listed(fd: int) -> Iterator[tuple[bytes, bool]]:
    with os.scandir(fd) as found:
        for item in found:
            yield os.fsencode(item.name), item.is_dir(follow_symlinks=False)
