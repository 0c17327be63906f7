"""A directory as a stream of entries, read so that a tree that changes meanwhile cannot lead astray."""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from dmthin.errors import InvalidValue, Unavailable
from dmthin.kernel.openat import DIRECTORY
from dmthin.layers.confine import MAX_PATH, ascend
from dmthin.layers.entry import NO_DATA, Entry, Reader, shown
from dmthin.layers.nodes import Identity, NodeReader, identity, names

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Level:
    """A directory on the way from the root: its path, what is left to do in it, last first."""

    path: bytes
    identity: Identity
    names: list[bytes]


class TreeWalker:
    """Iterates over the (entry, reader) pairs of a directory: itself, as `.`, then all below it by name.

    Everything that root can read is there: owners, modes, times in nanoseconds, extended attributes, devices,
    fifos, holes; names of one inode become hard links to the first. Sockets are left out. Like
    `tar --one-file-system`, it lists a mount point but not what is below it. Names are opened relative to
    their directory and no link is followed.

    What vanishes before it is read is left out. InvalidValue: a directory was moved or replaced, a file
    shrank while it was read, a path is longer than the kernel takes. NotPermitted: something cannot be read.
    Memory: the names of the directories on the way down, and of files with several names not all seen yet.
    `position` counts the bytes of file data read.
    """

    def __init__(self, root_fd: int, name: str) -> None:
        self._root_fd = root_fd
        self._name = name
        self._nodes = NodeReader(name)

    @property
    def position(self) -> int:
        return self._nodes.position

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        path = b"."
        try:
            fd = os.open(b".", DIRECTORY, dir_fd=self._root_fd)
            try:
                root = os.fstat(fd)
                yield self._nodes.directory(fd, path, root), NO_DATA
                levels = [_Level(b"", identity(root), names(fd))]
                while levels:
                    level = levels[-1]
                    if not level.names:
                        levels.pop()
                        if levels:
                            fd = ascend(fd, levels[-1].identity)
                        continue
                    name = level.names.pop()
                    path = level.path + b"/" + name if level.path else name
                    if len(path) > MAX_PATH:
                        raise InvalidValue(f"{self._name}: {shown(path)} is longer than {MAX_PATH} bytes")
                    try:
                        info = os.lstat(name, dir_fd=fd)
                        if not stat.S_ISDIR(info.st_mode):
                            if stat.S_ISSOCK(info.st_mode):
                                logger.debug("%s: left out the socket %s", self._name, shown(path))
                            else:
                                yield from self._nodes.leaf(fd, name, path, info)
                            continue
                        inner = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:
                        logger.info("%s: left out %s, which vanished", self._name, shown(path))
                        continue
                    try:
                        info = os.fstat(inner)
                        yield self._nodes.directory(inner, path, info), NO_DATA
                        if info.st_dev == root.st_dev:
                            levels.append(_Level(path, identity(info), names(inner)))
                            fd, inner = inner, fd
                        else:
                            logger.warning("%s: left out the file system at %s", self._name, shown(path))
                    finally:
                        os.close(inner)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._nodes.explained(path, error) from error


def require_proc() -> None:
    """Raises Unavailable without /proc, through which attributes of links and devices are read."""
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        raise Unavailable("/proc is not there", hint="mount it: mount -t proc proc /proc")
