"""Comparison of a layer's tree with its parent's, as a stream of changes."""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from dmthin.errors import InvalidValue
from dmthin.kernel.openat import DIRECTORY
from dmthin.layers.confine import MAX_PATH
from dmthin.layers.entry import NO_DATA, Entry, Reader, shown
from dmthin.layers.nodes import Identity, NodeReader, ascend, identity
from dmthin.layers.same import directories_differ, leaves_differ
from dmthin.layers.whiteout import PREFIX

logger = logging.getLogger(__name__)

_TRIES = 4
_REPLACED = frozenset((errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.ENXIO))
"""Errors for a name that was removed, or replaced by another inode, since it was listed."""


class ChangeKind(IntEnum):
    """What happened to a path. The numbers are Docker's (ChangeModify, ChangeAdd, ChangeDelete)."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class TreeChange:
    """One path that differs. `entry` is None for a deletion, and for all changes with `read=False`.

    `size` is the bytes that the change counts in Docker's DiffSize: the size of anything but a directory, with an inode
    of several links counted once. `data` is valid until the next change is requested.
    """

    path: bytes
    kind: ChangeKind
    size: int = 0
    entry: Entry | None = None
    data: Reader = NO_DATA


@dataclass(slots=True)
class _DirectoryPair:
    """A directory between the root and the current one, and its counterpart `old` in the parent's tree, if it has one.

    `names` are those not compared yet, last first. `emitted`: a change of the directory itself was emitted.
    """

    path: bytes
    new: Identity
    old: Identity | None
    names: list[bytes]
    emitted: bool


class TreeComparer:
    """Iterates over the changes from a parent's tree to a layer's, depth first, in byte order within a directory.

    Without a parent, everything is added. The rules are Docker's: an unchanged directory that contains changes is
    modified, and listed before them; a removed directory is one deletion, and one that became a file is one
    modification; the root itself is never listed; times of directories are ignored. Two rules are stricter than
    Docker's: all extended attributes that a layer contains are compared, and a file whose times are equal at the
    precision that Docker compares is compared by content. A layer's volume starts as a snapshot of its parent's, so
    an inode with the same number and change time is unchanged; it costs two calls of lstat(2) and no more.

    Sockets are ignored, and so are names that begin with `.wh.`, which a layer cannot contain. The layer's tree may be
    in use: what vanishes is skipped, a file that shrinks is padded with zeros. No symbolic link is followed. Iteration
    raises InvalidValue (a directory was moved to another one meanwhile, a path is longer than the kernel allows),
    NotPermitted or KernelError (something cannot be read).

    `read=False` yields paths and sizes only. Memory use: the names in the directories between the root and the current
    one, and the files with several links that have not all been visited.
    """

    def __init__(self, root_fd: int, parent_fd: int | None, tree: str, *, read: bool = True) -> None:
        self._root_fd = root_fd
        self._parent_fd = parent_fd
        self._tree = tree
        self._read = read
        self._nodes = NodeReader(tree, layer=True)
        self._path = b"."
        self._new = self._old = -1
        self._levels: list[_DirectoryPair] = []

    def __iter__(self) -> Iterator[TreeChange]:
        try:
            self._new = os.open(b".", DIRECTORY, dir_fd=self._root_fd)
            if self._parent_fd is not None:
                self._old = os.open(b".", DIRECTORY, dir_fd=self._parent_fd)
            yield from self._walk()
        except OSError as error:
            raise self._nodes.read_error(self._path, error) from error
        finally:
            for fd in (self._new, self._old):
                if fd >= 0:
                    os.close(fd)
            self._new = self._old = -1

    def _walk(self) -> Iterator[TreeChange]:
        root = os.fstat(self._new)
        counterpart = identity(os.fstat(self._old)) if self._old >= 0 else None
        names = _names(self._new, None if counterpart is None else self._old)
        self._levels = levels = [_DirectoryPair(b"", identity(root), counterpart, names, True)]
        while levels:
            level = levels[-1]
            self._path = level.path or b"."
            yield from self._compare(level)
            if levels[-1] is level:  # it is finished; otherwise `_compare` has entered a subdirectory
                levels.pop()
                if levels:
                    self._new = ascend(self._new, levels[-1].new)
                    if level.old is not None:
                        assert levels[-1].old is not None
                        self._old = ascend(self._old, levels[-1].old)

    def _compare(self, level: _DirectoryPair) -> Iterator[TreeChange]:
        """Yield the changes in a directory until its end, or until a subdirectory was entered, which comes first.

        Raise InvalidValue for a path that is too long, and OSError.
        """
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
                    # The hot path: an inode that was not changed since the snapshot (`_is_unchanged`, inlined).
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
                logger.warning("%s: skipped %s: a layer cannot contain names with .wh.", self._tree, shown(path))
                continue
            if len(path) > MAX_PATH:
                raise InvalidValue(f"{self._tree}: {shown(path)} is longer than {MAX_PATH} bytes")
            if new is not None and stat.S_ISDIR(new.st_mode):
                yield from self._directory(level, name, path, _unless_socket(old))
                if self._levels[-1] is not level:
                    return
            else:
                yield from self._leaf(name, path, _unless_socket(new), _unless_socket(old))

    def _directory(
        self, level: _DirectoryPair, name: bytes, path: bytes, old: os.stat_result | None
    ) -> Iterator[TreeChange]:
        """Yield a change of the directory itself, if there is one, and enter it."""
        new_fd = old_fd = -1
        try:
            try:
                new_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._new)
            except OSError as error:
                if error.errno not in _REPLACED:
                    raise
                self._log_vanished(path)
                return
            new = os.fstat(new_fd)
            if new.st_dev != level.new[0]:
                logger.warning("%s: skipped the file system mounted at %s", self._tree, shown(path))
                return
            counterpart = None
            kind: ChangeKind | None = ChangeKind.ADDED if old is None else ChangeKind.MODIFIED
            if old is not None and stat.S_ISDIR(old.st_mode):
                old_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._old)
                old = os.fstat(old_fd)
                counterpart = identity(old)
                if not directories_differ(new_fd, old_fd, new, old):
                    kind = None
            if kind is not None:
                yield from self._modified_parents()
                yield TreeChange(path, kind, entry=self._nodes.directory(new_fd, path, new) if self._read else None)
            self._new, new_fd = new_fd, self._new
            if counterpart is not None:
                self._old, old_fd = old_fd, self._old
            names = _names(self._new, None if counterpart is None else self._old)
            self._levels.append(_DirectoryPair(path, identity(new), counterpart, names, kind is not None))
        finally:
            for fd in (new_fd, old_fd):
                if fd >= 0:
                    os.close(fd)

    def _modified_parents(self) -> Iterator[TreeChange]:
        """Yield the unchanged directories above the current name as modified, before the first change in them.

        They are held back until then, because a directory without changes in it must not be listed.
        """
        unlisted = []
        for level in reversed(self._levels):
            if level.emitted:
                break
            unlisted.append(level)
        if not unlisted:
            return
        changes = []
        fd = os.dup(self._new) if self._read else -1
        try:
            for index, level in enumerate(unlisted):
                entry = self._nodes.directory(fd, level.path, os.fstat(fd)) if self._read else None
                changes.append(TreeChange(level.path, ChangeKind.MODIFIED, entry=entry))
                if self._read and index + 1 < len(unlisted):
                    fd = ascend(fd, unlisted[index + 1].new)
        finally:
            if fd >= 0:
                os.close(fd)
        for level in unlisted:
            level.emitted = True
        yield from reversed(changes)

    def _leaf(
        self,
        name: bytes,
        path: bytes,
        new: os.stat_result | None,
        old: os.stat_result | None,
    ) -> Iterator[TreeChange]:
        """Yield the change of a name that is not a directory in the layer's tree, or is not there (`new` is None)."""
        for left in reversed(range(_TRIES)):
            if new is None:
                if old is not None:
                    yield from self._modified_parents()
                    yield TreeChange(path, ChangeKind.DELETED)
                return
            kind = ChangeKind.ADDED if old is None else ChangeKind.MODIFIED
            try:
                if (
                    old is not None
                    and stat.S_IFMT(new.st_mode) == stat.S_IFMT(old.st_mode)
                    and not leaves_differ(self._new, self._old, name, new, old)
                ):
                    return
                yield from self._changed_leaf(name, path, kind, new)
                return
            except OSError as error:
                if error.errno not in _REPLACED or not left:
                    raise
            # It was replaced since the lstat(2), as by rename(2): compare what is there now.
            new = self._lstat(name)
            if new is not None and stat.S_ISDIR(new.st_mode):
                self._log_vanished(path)
                return

    def _changed_leaf(self, name: bytes, path: bytes, kind: ChangeKind, info: os.stat_result) -> Iterator[TreeChange]:
        known = self._nodes.first_name(info) is not None
        if self._read:
            for entry, data in self._nodes.leaf(self._new, name, path, info):
                yield from self._modified_parents()
                yield TreeChange(path, kind, 0 if known else info.st_size, entry, data)
        else:
            yield from self._modified_parents()
            yield TreeChange(path, kind, 0 if known else info.st_size)
            self._nodes.remember(info, path)

    def _lstat(self, name: bytes) -> os.stat_result | None:
        try:
            return _unless_socket(os.lstat(name, dir_fd=self._new))
        except FileNotFoundError:
            return None

    def _log_vanished(self, path: bytes) -> None:
        logger.info("%s: skipped %s, which vanished", self._tree, shown(path))


def _names(new_fd: int, old_fd: int | None) -> list[bytes]:
    """Return the names in a directory or in its counterpart, in descending byte order."""
    listed = os.listdir(new_fd)
    if old_fd is not None:
        others = os.listdir(old_fd)  # noqa: PTH208
        if others != listed:  # a snapshot mostly lists the same names in the same order
            listed = list({*listed, *others})
    return sorted(map(os.fsencode, listed), reverse=True)


def _unless_socket(info: os.stat_result | None) -> os.stat_result | None:
    return None if info is None or stat.S_ISSOCK(info.st_mode) else info
