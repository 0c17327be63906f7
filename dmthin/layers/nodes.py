"""One name of a directory as an entry with its data: what every reading of a tree is made of."""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping

from dmthin.errors import DmthinError, InvalidValue
from dmthin.layers.entry import MODE_BITS, NO_DATA, NO_XATTRS, Entry, EntryType, Reader, shown
from dmthin.layers.xattrs import read_xattrs
from dmthin.os_errors import TREE_READ, explain
from dmthin.units import MIB

logger = logging.getLogger(__name__)

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS = {
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHAR_DEVICE,
    stat.S_IFBLK: EntryType.BLOCK_DEVICE,
    stat.S_IFIFO: EntryType.FIFO,
}
_ZEROS = bytes(MIB)

Identity = tuple[int, int]
"""Device and inode number."""


class NodeReader:
    """Makes entries of what lies in directories, and knows which names of one file it has given already.

    Everything that root can read is in them: owners, modes, times in nanoseconds, extended attributes, devices,
    fifos, holes; further names of one inode become hard links to the first that was given.

    With `layer`, entries have the attributes that a layer carries, and a file that shrinks while it is read is
    filled up with zeros to the length that its entry has, because nobody can take that entry back; without, it is
    an InvalidValue. Names are opened relative to their directory, and no link is followed. All methods raise
    OSError for a name that vanished or became something else (ESTALE) before it was opened; `explained` makes
    it an error with words. `position` counts the bytes of file data read.
    """

    def __init__(self, tree: str, *, layer: bool = False) -> None:
        self.tree = tree
        self.layer = layer
        self.position = 0
        self._links: dict[Identity, tuple[bytes, int]] = {}

    def directory(self, fd: int, path: bytes, info: os.stat_result) -> Entry:
        """The entry of an open directory."""
        return _entry(path, EntryType.DIRECTORY, info, read_xattrs(fd, layer=self.layer))

    def leaf(self, fd: int, name: bytes, path: bytes, info: os.stat_result) -> Iterator[tuple[Entry, Reader]]:
        """The one entry of anything but a directory or socket, its data readable until the iterator goes on."""
        kind = stat.S_IFMT(info.st_mode)
        first = self.first_name(info)
        if first is not None:
            yield _entry(path, EntryType.HARDLINK, info, NO_XATTRS, link=first), NO_DATA
        elif kind == stat.S_IFREG:
            yield from self._file(fd, name, path, info)
        else:
            link = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else b""
            xattrs = read_xattrs(through_proc(fd, name), layer=self.layer)
            yield _entry(path, _OTHERS[kind], info, xattrs, link=link), NO_DATA
        self.remember(info, path)

    def _file(self, fd: int, name: bytes, path: bytes, info: os.stat_result) -> Iterator[tuple[Entry, Reader]]:
        file = open_file(fd, name)
        try:
            opened = os.fstat(file)
            if identity(opened) != identity(info) or not stat.S_ISREG(opened.st_mode):
                raise OSError(errno.ESTALE, "it was replaced meanwhile")
            size = opened.st_size
            segments = data_segments(file, size) if opened.st_blocks * 512 < size else None
            xattrs = read_xattrs(file, layer=self.layer)
            entry = _entry(path, EntryType.FILE, opened, xattrs, size=size, segments=segments)
            yield entry, _FileData(file, entry, self)
        finally:
            os.close(file)

    def first_name(self, info: os.stat_result) -> bytes | None:
        """The path under which this file was given already."""
        known = self._links.get(identity(info)) if info.st_nlink > 1 else None
        return known and known[0]

    def remember(self, info: os.stat_result, path: bytes) -> None:
        """Keep in mind that a file was given, as long as it has names that were not."""
        if info.st_nlink > 1:
            first, left = self._links.get(identity(info), (path, info.st_nlink))
            if left > 1:
                self._links[identity(info)] = first, left - 1
            else:
                self._links.pop(identity(info), None)

    def shrank(self, path: bytes) -> None:
        """Say that a file has less data than it had: in a log if it does not matter, else by InvalidValue."""
        words = f"{self.tree}: {shown(path)} shrank while it was read"
        if not self.layer:
            raise InvalidValue(words, hint="let nothing write there")
        logger.warning("%s; the rest is zeros", words)

    def explained(self, path: bytes, error: OSError) -> DmthinError:
        """The error for what the kernel says on reading `path`."""
        failed = f"{self.tree}: {shown(path)} cannot be read"
        return explain(error.errno or 0, failed, TREE_READ, reason=error.strerror or "")


class _FileData:
    """The data of an open file, its holes left out."""

    __slots__ = ("_at", "_fd", "_left", "_nodes", "_path", "_segments", "_shrank")

    def __init__(self, fd: int, entry: Entry, nodes: NodeReader) -> None:
        self._fd = fd
        self._path = entry.path
        self._nodes = nodes
        self._segments = iter(((0, entry.size),) if entry.segments is None else entry.segments)
        self._at = self._left = 0
        self._shrank = False

    def read(self, limit: int, /) -> bytes:
        if not self._left:
            self._at, self._left = next(self._segments, (0, 0))
            if not self._left:
                return b""
        try:
            piece = b"" if self._shrank else os.pread(self._fd, min(limit, self._left), self._at)
        except OSError as error:
            raise self._nodes.explained(self._path, error) from error
        if not piece:
            if not self._shrank:
                self._nodes.shrank(self._path)
                self._shrank = True
            piece = _ZEROS[: min(limit, self._left)]
        self._at += len(piece)
        self._left -= len(piece)
        self._nodes.position += len(piece)
        return piece


def identity(info: os.stat_result) -> Identity:
    """What tells an inode from all others that are mounted."""
    return info.st_dev, info.st_ino


def names(fd: int) -> list[bytes]:
    """The names in a directory in the order of their bytes, last first, so that they can be popped."""
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def through_proc(parent_fd: int, name: bytes) -> bytes:
    """A path to a link or node, for calls that take neither a parent's descriptor nor the file's own."""
    return b"/proc/self/fd/%d/%b" % (parent_fd, name)


def open_file(parent_fd: int, name: bytes) -> int:
    """Open a file without a change of its access time, which only its owner and root may ask for."""
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=parent_fd)
    except PermissionError:
        return os.open(name, _FILE, dir_fd=parent_fd)


def data_segments(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
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
        if start >= size:
            break
        try:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # it was cut off meanwhile
                break
            raise
        if start < end:
            found.append((start, end - start))
        else:
            break
    return None if found == [(0, size)] else tuple(found)


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
