"""Reading one name in a directory as an entry with its data; shared by the walk and the comparison of trees."""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping

from dmthin.errors import DmthinError, InvalidValue
from dmthin.kernel.openat import DIRECTORY
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
    """Reads inodes as entries, and tracks those with several links.

    Entries contain everything that root can read: owners, modes, times in nanoseconds, extended attributes, devices,
    fifos, holes. Further names of an inode become hard links to its first one.

    With `layer`, entries have only the extended attributes that a layer contains, and a file that shrinks while it is
    read is padded with zeros to the size in its entry, which has been emitted already; otherwise that is an
    InvalidValue. Names are opened relative to their directory, and no symbolic link is followed. All methods raise
    OSError, ESTALE if the name was replaced before it was opened; `read_error` translates it. `position` is the number
    of bytes of file data read so far.
    """

    def __init__(self, tree: str, *, layer: bool = False) -> None:
        self.tree = tree
        self.layer = layer
        self.position = 0
        self._links: dict[Identity, tuple[bytes, int]] = {}

    def directory(self, fd: int, path: bytes, info: os.stat_result) -> Entry:
        """Return the entry of an open directory. Raise OSError."""
        return _entry(path, EntryType.DIRECTORY, info, read_xattrs(fd, layer=self.layer))

    def leaf(self, fd: int, name: bytes, path: bytes, info: os.stat_result) -> Iterator[tuple[Entry, Reader]]:
        """Yield the one entry of anything but a directory or socket; its reader is valid until the iterator advances.

        Raise OSError.
        """
        kind = stat.S_IFMT(info.st_mode)
        first = self.first_name(info)
        if first is not None:
            yield _entry(path, EntryType.HARDLINK, info, NO_XATTRS, link=first), NO_DATA
        elif kind == stat.S_IFREG:
            yield from self._file(fd, name, path, info)
        else:
            link = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else b""
            xattrs = read_xattrs(proc_path(fd, name), layer=self.layer)
            yield _entry(path, _OTHERS[kind], info, xattrs, link=link), NO_DATA
        self.remember(info, path)

    def _file(self, fd: int, name: bytes, path: bytes, info: os.stat_result) -> Iterator[tuple[Entry, Reader]]:
        """Yield the entry of a regular file. Raise OSError, ESTALE if it is no longer the inode of `info`."""
        file = open_file(fd, name)
        try:
            opened = os.fstat(file)
            if identity(opened) != identity(info) or not stat.S_ISREG(opened.st_mode):
                raise OSError(errno.ESTALE, "replaced meanwhile")
            size = opened.st_size
            segments = data_segments(file, size) if opened.st_blocks * 512 < size else None
            xattrs = read_xattrs(file, layer=self.layer)
            entry = _entry(path, EntryType.FILE, opened, xattrs, size=size, segments=segments)
            yield entry, _FileData(file, entry, self)
        finally:
            os.close(file)

    def first_name(self, info: os.stat_result) -> bytes | None:
        """Return the path of the first entry of this inode, None if it has had none."""
        known = self._links.get(identity(info)) if info.st_nlink > 1 else None
        return known and known[0]

    def remember(self, info: os.stat_result, path: bytes) -> None:
        """Record that a name of this inode was emitted; drop the record once all its links have been."""
        if info.st_nlink > 1:
            first, left = self._links.get(identity(info), (path, info.st_nlink))
            if left > 1:
                self._links[identity(info)] = first, left - 1
            else:
                self._links.pop(identity(info), None)

    def report_shrunk(self, path: bytes) -> None:
        """Log a warning that a file shrank while it was read. Raise InvalidValue instead unless this is a `layer`."""
        text = f"{self.tree}: {shown(path)} shrank while it was read"
        if not self.layer:
            raise InvalidValue(text, hint="stop writing to the tree")
        logger.warning("%s; padded with zeros", text)

    def read_error(self, path: bytes, error: OSError) -> DmthinError:
        """Return the error to raise for an OSError on reading `path`."""
        failed = f"{self.tree}: cannot read {shown(path)}"
        return explain(error.errno or 0, failed, TREE_READ, reason=error.strerror or "")


class _FileData:
    """The data of an open file without its holes."""

    __slots__ = ("_at", "_fd", "_left", "_nodes", "_path", "_segments", "_shrank")

    def __init__(self, fd: int, entry: Entry, nodes: NodeReader) -> None:
        self._fd = fd
        self._path = entry.path
        self._nodes = nodes
        self._segments = iter(((0, entry.size),) if entry.segments is None else entry.segments)
        self._at = self._left = 0
        self._shrank = False

    def read(self, limit: int, /) -> bytes:
        """Return 1 to `limit` bytes, `b""` at the end. Raise what `read_error` and `report_shrunk` do."""
        if not self._left:
            self._at, self._left = next(self._segments, (0, 0))
            if not self._left:
                return b""
        try:
            piece = b"" if self._shrank else os.pread(self._fd, min(limit, self._left), self._at)
        except OSError as error:
            raise self._nodes.read_error(self._path, error) from error
        if not piece:
            if not self._shrank:
                self._nodes.report_shrunk(self._path)
                self._shrank = True
            piece = _ZEROS[: min(limit, self._left)]
        self._at += len(piece)
        self._left -= len(piece)
        self._nodes.position += len(piece)
        return piece


def identity(info: os.stat_result) -> Identity:
    """Return (device, inode), which identifies an inode among all mounted file systems."""
    return info.st_dev, info.st_ino


def ascend(fd: int, expected: tuple[int, int]) -> int:
    """Close the directory `fd` and return a descriptor of its parent, which must be the (device, inode) `expected`.

    Raise OSError with ESTALE if the directory was moved meanwhile; `fd` stays open then.
    """
    above = os.open(b"..", DIRECTORY, dir_fd=fd)
    info = os.fstat(above)
    if (info.st_dev, info.st_ino) != expected:
        os.close(above)
        raise OSError(errno.ESTALE, "a directory was moved meanwhile")
    os.close(fd)
    return above


def names(fd: int) -> list[bytes]:
    """Return the names in a directory in descending byte order, to be popped from the end."""
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def proc_path(parent_fd: int, name: bytes) -> bytes:
    """Return a path in /proc of a link or node, for system calls that have no variant with a directory descriptor."""
    return b"/proc/self/fd/%d/%b" % (parent_fd, name)


def open_file(parent_fd: int, name: bytes) -> int:
    """Open a file for reading, with O_NOATIME if this process may use it (its owner and root may). Raise OSError."""
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=parent_fd)
    except PermissionError:
        return os.open(name, _FILE, dir_fd=parent_fd)


def data_segments(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Return the (offset, length) extents of data in a file (lseek(2), SEEK_DATA); None if it has no known holes.

    Raise OSError.
    """
    found = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after `end`
                break
            if error.errno == errno.EINVAL:
                return None
            raise
        if start >= size:
            break
        try:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # truncated meanwhile
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
