"""A directory tree as a stream of entries, safe against concurrent changes of the tree."""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from dmthin.errors import InvalidValue, Unavailable
from dmthin.kernel.openat import DIRECTORY
from dmthin.layers.confine import MAX_PATH
from dmthin.layers.entry import NO_DATA, Entry, Reader, shown
from dmthin.layers.nodes import Identity, NodeReader, ascend, identity, names

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Level:
    """A directory between the root and the current one: its path, and the names not visited yet, last first."""

    path: bytes
    identity: Identity
    names: list[bytes]


class TreeWalker:
    """Iterates over the (entry, reader) pairs of a directory tree, depth first, by name; the root comes first as `.`.

    Entries contain everything that root can read: owners, modes, times in nanoseconds, extended attributes, devices,
    fifos, holes. Further names of an inode become hard links to its first one. Sockets are skipped. Like
    `tar --one-file-system`, it lists a mount point but nothing below it. Names are opened relative to their directory,
    and no symbolic link is followed.

    What vanishes before it is read is skipped. Iteration raises InvalidValue (a directory was moved or replaced, a
    file shrank while it was read, a path is longer than the kernel allows), NotPermitted or KernelError (something
    cannot be read). Memory use: the names in the directories between the root and the current one, and the files with
    several links that have not all been visited. `position` is the number of bytes of file data read so far.
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
                                logger.debug("%s: skipped the socket %s", self._name, shown(path))
                            else:
                                yield from self._nodes.leaf(fd, name, path, info)
                            continue
                        inner = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:
                        logger.info("%s: skipped %s, which vanished", self._name, shown(path))
                        continue
                    try:
                        info = os.fstat(inner)
                        yield self._nodes.directory(inner, path, info), NO_DATA
                        if info.st_dev == root.st_dev:
                            levels.append(_Level(path, identity(info), names(inner)))
                            fd, inner = inner, fd
                        else:
                            logger.warning("%s: skipped the file system mounted at %s", self._name, shown(path))
                    finally:
                        os.close(inner)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._nodes.read_error(path, error) from error


def require_proc() -> None:
    """Raise Unavailable unless /proc is mounted: attributes of links and devices are read through it."""
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        raise Unavailable("/proc is not mounted", hint="run: mount -t proc proc /proc")
