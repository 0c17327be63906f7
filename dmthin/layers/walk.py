"""A directory as a stream of entries, read so that a tree that changes meanwhile cannot lead astray."""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dmthin.errors import DmthinError, InvalidValue, KernelError, NotPermitted, Unavailable
from dmthin.layers.confine import MAX_PATH, ascend
from dmthin.layers.entry import MODE_BITS, NO_DATA, NO_XATTRS, Entry, EntryType, Reader, shown

logger = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS = {
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHAR_DEVICE,
    stat.S_IFBLK: EntryType.BLOCK_DEVICE,
    stat.S_IFIFO: EntryType.FIFO,
}

Identity = tuple[int, int]
"""Device and inode number."""


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
        self._links: dict[Identity, tuple[bytes, int]] = {}
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        path = b"."
        try:
            fd = os.open(b".", _DIRECTORY, dir_fd=self._root_fd)
            try:
                root = os.fstat(fd)
                yield _entry(path, EntryType.DIRECTORY, root, _xattrs(fd)), NO_DATA
                levels = [_Level(b"", _identity(root), _names(fd))]
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
                            yield from self._leaf(fd, name, path, info)
                            continue
                        inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:
                        logger.info("%s: left out %s, which vanished", self._name, shown(path))
                        continue
                    try:
                        info = os.fstat(inner)
                        yield _entry(path, EntryType.DIRECTORY, info, _xattrs(inner)), NO_DATA
                        if info.st_dev == root.st_dev:
                            levels.append(_Level(path, _identity(info), _names(inner)))
                            fd, inner = inner, fd
                        else:
                            logger.warning("%s: left out the file system at %s", self._name, shown(path))
                    finally:
                        os.close(inner)
            finally:
                os.close(fd)
        except OSError as error:
            raise self.explained(path, error) from error

    def _leaf(
        self, fd: int, name: bytes, path: bytes, info: os.stat_result
    ) -> Iterator[tuple[Entry, Reader]]:
        """The entry of anything but a directory, if it is one that is kept."""
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFSOCK:
            logger.debug("%s: left out the socket %s", self._name, shown(path))
            return
        first = self._first_name(info, path)
        if first is not None:
            yield _entry(path, EntryType.HARDLINK, info, NO_XATTRS, link=first), NO_DATA
        elif kind == stat.S_IFREG:
            yield from self._file(fd, name, path, info)
        else:
            link = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else b""
            xattrs = _xattrs(b"/proc/self/fd/%d/%b" % (fd, name))
            yield _entry(path, _OTHERS[kind], info, xattrs, link=link), NO_DATA
        self._remember(info, path)

    def _file(
        self, fd: int, name: bytes, path: bytes, info: os.stat_result
    ) -> Iterator[tuple[Entry, Reader]]:
        file = _open_quietly(name, fd)
        try:
            opened = os.fstat(file)
            if _identity(opened) != _identity(info) or not stat.S_ISREG(opened.st_mode):
                raise OSError(errno.ESTALE, "it was replaced meanwhile")
            segments = _segments(file, opened.st_size) if opened.st_blocks * 512 < opened.st_size else None
            entry = _entry(
                path, EntryType.FILE, opened, _xattrs(file), size=opened.st_size, segments=segments
            )
            yield entry, _FileData(file, entry, self)
        finally:
            os.close(file)

    def _first_name(self, info: os.stat_result, path: bytes) -> bytes | None:
        known = self._links.get(_identity(info)) if info.st_nlink > 1 else None
        return known and known[0]

    def _remember(self, info: os.stat_result, path: bytes) -> None:
        if info.st_nlink > 1:
            first, left = self._links.get(_identity(info), (path, info.st_nlink))
            if left > 1:
                self._links[_identity(info)] = first, left - 1
            else:
                self._links.pop(_identity(info), None)

    def shrank(self, path: bytes) -> InvalidValue:
        """The error for a file that has less data than it had."""
        return InvalidValue(
            f"{self._name}: {shown(path)} shrank while it was read", hint="let nothing write there"
        )

    def explained(self, path: bytes, error: OSError) -> DmthinError:
        """The error for what the kernel says on reading `path`."""
        words = f"{self._name}: {shown(path)} cannot be read: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return NotPermitted(words, hint="run as root")
        if error.errno in (errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return InvalidValue(words, hint="let nothing write there")
        return KernelError(words, errno=error.errno or 0)


class _FileData:
    """The data of an open file, its holes left out."""

    __slots__ = ("_at", "_fd", "_left", "_path", "_segments", "_walker")

    def __init__(self, fd: int, entry: Entry, walker: TreeWalker) -> None:
        self._fd = fd
        self._path = entry.path
        self._walker = walker
        self._segments = iter(((0, entry.size),) if entry.segments is None else entry.segments)
        self._at = self._left = 0

    def read(self, limit: int, /) -> bytes:
        if not self._left:
            self._at, self._left = next(self._segments, (0, 0))
            if not self._left:
                return b""
        try:
            piece = os.pread(self._fd, min(limit, self._left), self._at)
        except OSError as error:
            raise self._walker.explained(self._path, error) from error
        if not piece:
            raise self._walker.shrank(self._path)
        self._at += len(piece)
        self._left -= len(piece)
        self._walker.position += len(piece)
        return piece


def require_proc() -> None:
    """Raises Unavailable without /proc, through which attributes of links and devices are read."""
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        raise Unavailable("/proc is not there", hint="mount it: mount -t proc proc /proc")


def _entry(
    path: bytes,
    kind: EntryType,
    info: os.stat_result,
    xattrs: Mapping[str, bytes],
    *,
    link: bytes = b"",
    size: int = 0,
    segments: tuple[tuple[int, int], ...] | None = None,
) -> Entry:
    is_device = kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
    return Entry(
        path,
        kind,
        info.st_mode & MODE_BITS,
        info.st_uid,
        info.st_gid,
        info.st_mtime_ns,
        size,
        link,
        info.st_rdev if is_device else 0,
        xattrs,
        segments,
    )


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino


def _names(fd: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def _open_quietly(name: bytes, fd: int) -> int:
    """Open a file without a change of its access time, which only its owner and root may ask for."""
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=fd)
    except PermissionError:
        return os.open(name, _FILE, dir_fd=fd)


def _xattrs(target: int | bytes) -> Mapping[str, bytes]:
    """All extended attributes of an open file, or of what a path names without following it."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return NO_XATTRS
    found = {}
    for name in names:
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        else:
            found[os.fsencode(name).decode("utf-8", "surrogateescape")] = value
    return found or NO_XATTRS


def _segments(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """The runs of data of a file with holes (lseek(2), SEEK_DATA); None where no holes are known."""
    found = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            if error.errno == errno.EINVAL:
                return None
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            found.append((start, end - start))
        else:
            break
    return None if found == [(0, size)] else tuple(found)
