"""What a layer's tree has that its parent's has not: two directories side by side, as a stream of changes."""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from dmthin.errors import InvalidValue
from dmthin.kernel.openat import DIRECTORY
from dmthin.layers.confine import MAX_PATH, ascend
from dmthin.layers.entry import NO_DATA, Entry, Reader, shown
from dmthin.layers.nodes import Identity, NodeReader, identity
from dmthin.layers.same import directories_differ, leaves_differ
from dmthin.layers.whiteout import PREFIX

logger = logging.getLogger(__name__)

_TRIES = 4
_OTHER_NOW = frozenset((errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.ENXIO))
"""What the kernel says when a name does not stand any more for what it stood for."""


class Kind(IntEnum):
    """What happened to a name, in Docker's numbers (ChangeModify, ChangeAdd, ChangeDelete)."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    """One name that differs. `entry` is None for what was deleted, and everywhere if only names were asked for.

    `size` is what the change counts in Docker's DiffSize: the length of anything but a directory, in bytes, with a
    file of several names counted once. `data` is good until the next change is asked for.
    """

    path: bytes
    kind: Kind
    size: int = 0
    entry: Entry | None = None
    data: Reader = NO_DATA


@dataclass(slots=True)
class _Level:
    """A directory on the way from the root: what is left to do in it, last first, and whether it was told of.

    `old` is the directory's counterpart, None where it has none.
    """

    path: bytes
    new: Identity
    old: Identity | None
    names: list[bytes]
    told: bool


class TreeComparer:
    """Iterates over the changes that lead from a parent's tree to a layer's, in the order of a depth-first walk.

    Within each directory names come in the order of their bytes. Without a parent everything is added. The rules
    are Docker's: a directory that is the same but holds changes is modified, before what it holds; one that is
    gone is one deletion, one that became a file one modification; the root itself is never listed; times of
    directories do not count. Two rules are better than Docker's: all extended attributes that a layer carries are
    compared, and a file that only seems to be the same, since its times agree as far as Docker looks, is compared
    by content. The volume of a layer began as a copy of its parent's blocks, so inode number and change time tell
    what surely is the same, and nothing more is asked of it than two calls of lstat(2).

    Sockets, and names that a layer cannot express because they begin with `.wh.`, are as if they were not there.
    The layer's tree may be in use: what vanishes is left out, a file that shrinks is filled up with zeros. No link
    is followed, and no way leads out of the roots. InvalidValue: a directory was moved to another meanwhile, a path
    is longer than the kernel takes. NotPermitted, KernelError: something cannot be read.

    `read=False` gives names and sizes only. Memory: the names of the directories on the way down, and the files
    with several names of which not all were listed.
    """

    def __init__(self, root_fd: int, parent_fd: int | None, tree: str, *, read: bool = True) -> None:
        self._root_fd = root_fd
        self._parent_fd = parent_fd
        self._tree = tree
        self._read = read
        self._nodes = NodeReader(tree, layer=True)
        self._path = b"."
        self._new = self._old = -1
        self._levels: list[_Level] = []

    def __iter__(self) -> Iterator[Change]:
        try:
            self._new = os.open(b".", DIRECTORY, dir_fd=self._root_fd)
            if self._parent_fd is not None:
                self._old = os.open(b".", DIRECTORY, dir_fd=self._parent_fd)
            yield from self._walk()
        except OSError as error:
            raise self._nodes.explained(self._path, error) from error
        finally:
            for fd in (self._new, self._old):
                if fd >= 0:
                    os.close(fd)
            self._new = self._old = -1

    def _walk(self) -> Iterator[Change]:
        root = os.fstat(self._new)
        above = identity(os.fstat(self._old)) if self._old >= 0 else None
        names = _names(self._new, None if above is None else self._old)
        self._levels = levels = [_Level(b"", identity(root), above, names, True)]
        while levels:
            level = levels[-1]
            self._path = level.path or b"."
            yield from self._differing(level)
            if levels[-1] is level:  # else a directory was entered
                levels.pop()
                if levels:
                    self._new = ascend(self._new, levels[-1].new)
                    if level.old is not None:
                        assert levels[-1].old is not None
                        self._old = ascend(self._old, levels[-1].old)

    def _differing(self, level: _Level) -> Iterator[Change]:
        """Go on in a directory until its end or a directory in it that must be entered first."""
        new_fd, old_fd, names, lstat = self._new, self._old, level.names, os.lstat
        new: os.stat_result | None
        old: os.stat_result | None = None
        while names:
            name = names.pop()
            try:
                new = lstat(name, dir_fd=new_fd)
            except FileNotFoundError:
                new = None
            if level.old is not None:
                try:
                    old = lstat(name, dir_fd=old_fd)
                except FileNotFoundError:
                    old = None
                if (
                    new is not None
                    and old is not None
                    # The common case, and so in the fewest steps: an inode that nobody touched.
                    and new.st_ctime_ns == old.st_ctime_ns
                    and new.st_ino == old.st_ino
                    and new.st_mtime_ns == old.st_mtime_ns
                    and new.st_size == old.st_size
                    and new.st_mode == old.st_mode
                    and not stat.S_ISDIR(new.st_mode)
                ):
                    continue
            self._path = path = level.path + b"/" + name if level.path else name
            if name.startswith(PREFIX):
                logger.warning("%s: left out %s, whose name no layer can express", self._tree, shown(path))
                continue
            if len(path) > MAX_PATH:
                raise InvalidValue(f"{self._tree}: {shown(path)} is longer than {MAX_PATH} bytes")
            if new is not None and stat.S_ISDIR(new.st_mode):
                yield from self._directory(level, name, path, _unless_socket(old))
                if self._levels[-1] is not level:
                    return
            else:
                yield from self._leaf(name, path, _unless_socket(new), _unless_socket(old))

    def _directory(self, level: _Level, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """Tell of a directory if it differs in itself, and enter it."""
        new_fd = old_fd = -1
        try:
            try:
                new_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._new)
            except OSError as error:
                if error.errno not in _OTHER_NOW:
                    raise
                self._vanished(path)
                return
            new = os.fstat(new_fd)
            if new.st_dev != level.new[0]:
                logger.warning("%s: left out the file system at %s", self._tree, shown(path))
                return
            below = None
            kind: Kind | None = Kind.ADDED if old is None else Kind.MODIFIED
            if old is not None and stat.S_ISDIR(old.st_mode):
                old_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._old)
                old = os.fstat(old_fd)
                below = identity(old)
                if not directories_differ(new_fd, old_fd, new, old):
                    kind = None
            if kind is not None:
                yield from self._held_back()
                yield Change(path, kind, entry=self._nodes.directory(new_fd, path, new) if self._read else None)
            self._new, new_fd = new_fd, self._new
            if below is not None:
                self._old, old_fd = old_fd, self._old
            names = _names(self._new, None if below is None else self._old)
            self._levels.append(_Level(path, identity(new), below, names, kind is not None))
        finally:
            for fd in (new_fd, old_fd):
                if fd >= 0:
                    os.close(fd)

    def _held_back(self) -> Iterator[Change]:
        """Tell of the directories on the way here that are the same, now that something in them is not."""
        waiting = []
        for level in reversed(self._levels):
            if level.told:
                break
            waiting.append(level)
        if not waiting:
            return
        changes = []
        fd = os.dup(self._new) if self._read else -1
        try:
            for index, level in enumerate(waiting):
                entry = self._nodes.directory(fd, level.path, os.fstat(fd)) if self._read else None
                changes.append(Change(level.path, Kind.MODIFIED, entry=entry))
                if self._read and index + 1 < len(waiting):
                    fd = ascend(fd, waiting[index + 1].new)
        finally:
            if fd >= 0:
                os.close(fd)
        for level in waiting:
            level.told = True
        yield from reversed(changes)

    def _leaf(
        self,
        name: bytes,
        path: bytes,
        new: os.stat_result | None,
        old: os.stat_result | None,
    ) -> Iterator[Change]:
        """Tell of anything but a directory if it differs, or of whatever was deleted."""
        for left in reversed(range(_TRIES)):
            if new is None:
                if old is not None:
                    yield from self._held_back()
                    yield Change(path, Kind.DELETED)
                return
            kind = Kind.ADDED if old is None else Kind.MODIFIED
            try:
                if (
                    old is not None
                    and stat.S_IFMT(new.st_mode) == stat.S_IFMT(old.st_mode)
                    and not leaves_differ(self._new, self._old, name, new, old)
                ):
                    return
                yield from self._told(name, path, kind, new)
                return
            except OSError as error:
                if error.errno not in _OTHER_NOW or not left:
                    raise
            # It was replaced in this very moment, as by rename(2): look again.
            new = self._look(name)
            if new is not None and stat.S_ISDIR(new.st_mode):
                self._vanished(path)
                return

    def _told(self, name: bytes, path: bytes, kind: Kind, info: os.stat_result) -> Iterator[Change]:
        known = self._nodes.first_name(info) is not None
        if self._read:
            for entry, data in self._nodes.leaf(self._new, name, path, info):
                yield from self._held_back()
                yield Change(path, kind, 0 if known else info.st_size, entry, data)
        else:
            yield from self._held_back()
            yield Change(path, kind, 0 if known else info.st_size)
            self._nodes.remember(info, path)

    def _look(self, name: bytes) -> os.stat_result | None:
        try:
            return _unless_socket(os.lstat(name, dir_fd=self._new))
        except FileNotFoundError:
            return None

    def _vanished(self, path: bytes) -> None:
        logger.info("%s: left out %s, which vanished", self._tree, shown(path))


def _names(new_fd: int, old_fd: int | None) -> list[bytes]:
    """The names in a directory, and those in its counterpart, the last one first."""
    listed = os.listdir(new_fd)
    if old_fd is not None:
        others = os.listdir(old_fd)  # noqa: PTH208
        if others != listed:  # a copy lists the same names, most often, and even in the same order
            listed = list({*listed, *others})
    return sorted(map(os.fsencode, listed), reverse=True)


def _unless_socket(info: os.stat_result | None) -> os.stat_result | None:
    return None if info is None or stat.S_ISSOCK(info.st_mode) else info
