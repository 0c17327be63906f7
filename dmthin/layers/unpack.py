"""Putting entries under a root, confined to it: no name, link or order of entries leads a write outside."""

import errno
import logging
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import BinaryIO

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace, NotPermitted, Unavailable
from dmthin.kernel.openat import chmod_node, open_entry
from dmthin.layers.confine import MAX_PATH, ConfinedTree, OpenDirectory, split
from dmthin.layers.entry import NO_DATA, Entry, EntryType, Reader, shown
from dmthin.layers.source import Source, open_source
from dmthin.units import MIB

logger = logging.getLogger(__name__)

_CHUNK = MIB
_PROGRESS_ENTRIES = 256
_PROGRESS_BYTES = 4 * MIB
_WARNINGS = 100
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_UNFIT = frozenset(
    (
        errno.EEXIST,
        errno.EFBIG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EXDEV,
    )
)
"""What the kernel answers to an entry that cannot be, in a tree where nobody else is at work."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an unpacking is: entries and bytes of files made; bytes read of the source, and of how many."""

    entries: int
    bytes: int
    read: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was unpacked: the number of entries and the sum of the lengths of all files, holes included."""

    entries: int
    bytes: int


class Unpacker:
    """Applies entries, one by one, below a root directory that nobody else changes meanwhile.

    Names are taken from the root; `..` and absolute names are clamped; links among parents are followed
    inside the root; missing parents are made with 0755. What is in the way is replaced, unless old and new
    are both directories. With `keep_owners` (needs root) everything gets the entry's owner, else the
    caller's. Messages begin with `source`. Directories get their times when the unpacker is closed; use it as
    a context manager.

    `apply` raises InvalidValue for an entry that cannot be, NoDataSpace when the volume is full (the message
    names the entry; the caller knows the volume and may add its size to `hint`), NotPermitted, KernelError.
    The tree is then half done, and for the caller to throw away.
    """

    def __init__(
        self,
        root: int | str | os.PathLike[str],
        *,
        source: str = "",
        keep_owners: bool = True,
        max_entries: int | None = None,
    ) -> None:
        self._prefix = f"{source}: " if source else ""
        self._keep_owners = keep_owners
        self._max_entries = max_entries
        self._warned: set[str] = set()
        self.entries = 0
        self.bytes = 0
        try:
            fd = root if isinstance(root, int) else os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._tree = ConfinedTree(fd)
            finally:
                if fd != root:
                    os.close(fd)
        except OSError as error:
            text = f"{root} cannot be unpacked to: {error.strerror}"
            raise KernelError(text, errno=error.errno or 0) from error
        self._make: dict[EntryType, Callable[[Entry, OpenDirectory, bytes, Reader], None]] = {
            EntryType.FILE: self._file,
            EntryType.SYMLINK: self._symlink,
            EntryType.HARDLINK: self._hardlink,
            EntryType.CHAR_DEVICE: self._node,
            EntryType.BLOCK_DEVICE: self._node,
            EntryType.FIFO: self._node,
        }

    def __enter__(self) -> "Unpacker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directories their times and let go of them. Raises KernelError."""
        try:
            self._tree.close()
        except OSError as error:
            text = f"{self._prefix}the times of directories cannot be set: {error.strerror}"
            raise KernelError(text, errno=error.errno or 0) from error

    def apply(self, entry: Entry, data: Reader = NO_DATA) -> None:
        """Make one entry, its data read from `data`."""
        self.entries += 1
        if self._max_entries is not None and self.entries > self._max_entries:
            raise self._wrong(f"more than {self._max_entries} entries")
        path = entry.path
        if len(path) > MAX_PATH or b"\0" in path:
            wrong = "contains a NUL" if b"\0" in path else f"is longer than {MAX_PATH} bytes"
            raise self._wrong(f"the name {shown(path)} {wrong}")
        parent_path, name = split(path)
        # The place for a layer's whiteouts (.wh.NAME): parent and name are known, and nothing is made yet.
        try:
            self._tree.trim()
            if entry.type is EntryType.DIRECTORY:
                self._directory(entry, parent_path, name)
            elif not name:
                raise self._wrong(f"the {entry.type.value} {shown(path)} would replace the root")
            else:
                parent = self._parent(entry, parent_path)
                make = self._make[entry.type]
                try:
                    make(entry, parent, name, data)
                except FileExistsError:
                    self._tree.remove(parent, name)
                    make(entry, parent, name, data)
                parent.dirty = True
        except OSError as error:
            raise self._explained(entry, error) from error
        self.bytes += entry.size

    def _parent(self, entry: Entry, path: bytes) -> OpenDirectory:
        try:
            return self._tree.directory(path)
        except FileNotFoundError:
            pass
        try:
            return self._tree.make_directory(path, owned_by_root=self._keep_owners)
        except FileExistsError as error:
            link = shown(os.fsencode(error.filename))
            raise self._wrong(f"{shown(entry.path)} lies behind {link}, a link that leads nowhere") from None

    def _directory(self, entry: Entry, parent_path: bytes, name: bytes) -> None:
        if name:
            parent = self._parent(entry, parent_path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent.fd)
                parent.dirty = True
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                    self._tree.remove(parent, name)
                    os.mkdir(name, 0o700, dir_fd=parent.fd)
            fd = open_entry(parent.fd, name)
            directory = self._tree.adopt(parent_path + b"/" + name if parent_path else name, fd)
        else:
            directory = self._tree.directory(b"")
        self._attributes(entry, directory.fd)
        directory.atime_ns = directory.mtime_ns = entry.mtime_ns
        directory.dirty = True

    def _file(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent.fd)
        try:
            if entry.segments is None:
                self._fill(fd, entry, entry.size, data)
            else:
                os.ftruncate(fd, entry.size)
                for offset, length in entry.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._fill(fd, entry, length, data)
            self._attributes(entry, fd)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _fill(self, fd: int, entry: Entry, left: int, data: Reader) -> None:
        """Write the next `left` bytes of `data`."""
        while left:
            piece = data.read(min(left, _CHUNK))
            if not piece:
                raise self._wrong(f"the data of {shown(entry.path)} ends before its size")
            left -= len(piece)
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, memoryview(piece)[written:])

    def _symlink(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        if not entry.link or b"\0" in entry.link:
            raise self._wrong(f"the symbolic link {shown(entry.path)} has no proper target")
        os.symlink(entry.link, name, dir_fd=parent.fd)
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        self._xattrs(entry, _through_proc(parent, name) if entry.xattrs else b"")
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _node(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        os.mknod(name, _NODES[entry.type] | 0o600, entry.device, dir_fd=parent.fd)
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        self._xattrs(entry, _through_proc(parent, name) if entry.xattrs else b"")
        chmod_node(parent.fd, name, entry.mode)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _hardlink(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        """A second name for a file, node or link inside the root; its attributes are those of the first."""
        if len(entry.link) > MAX_PATH or b"\0" in entry.link:
            raise self._wrong(f"the hard link {shown(entry.path)} has no proper target")
        target_parent, target = split(entry.link)
        leads = f"the hard link {shown(entry.path)} leads to {shown(entry.link)}, which is"
        if not target:
            raise self._wrong(f"{leads} the root")
        try:
            directory = self._tree.directory(target_parent)
            info = os.lstat(target, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._wrong(f"{leads} not there") from None
        if stat.S_ISDIR(info.st_mode):
            raise self._wrong(f"{leads} a directory")
        try:
            os.link(target, name, src_dir_fd=directory.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:
            there = os.lstat(name, dir_fd=parent.fd)
            if (there.st_dev, there.st_ino) != (info.st_dev, info.st_ino):
                raise

    def _attributes(self, entry: Entry, fd: int) -> None:
        """Owner, extended attributes, mode: chown takes capabilities and set-uid away, so it comes first."""
        if self._keep_owners:
            os.fchown(fd, entry.uid, entry.gid)
        if entry.xattrs:
            self._xattrs(entry, fd)
        os.fchmod(fd, entry.mode)

    def _xattrs(self, entry: Entry, target: int | bytes) -> None:
        for name, value in entry.xattrs.items():
            raw = name.encode("utf-8", "surrogateescape")
            what = f"the attribute {shown(raw)} of {shown(entry.path)}"
            try:
                if isinstance(target, int):
                    os.setxattr(target, raw, value)
                else:
                    os.setxattr(target, raw, value, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.ENOTSUP, errno.EPERM):  # as Docker does
                    if name not in self._warned and len(self._warned) < _WARNINGS:
                        self._warned.add(name)
                        logger.warning("left out %s and its like: %s", what, error.strerror)
                elif error.errno == errno.ENOENT and isinstance(target, bytes):
                    raise Unavailable(f"{what} cannot be set without /proc", hint="mount it") from error
                elif error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) and _has_room(target):
                    # ext4 holds one block of attributes per file, and says "no space" beyond that.
                    raise self._wrong(
                        f"{what} is too large for this file system: {len(value)} bytes"
                    ) from error
                else:
                    raise

    def _wrong(self, text: str) -> InvalidValue:
        return InvalidValue(self._prefix + text)

    def _explained(self, entry: Entry, error: OSError) -> DmthinError:
        number = error.errno or 0
        what = f"{entry.type.value} {shown(entry.path)}"
        if number in _FULL:
            return NoDataSpace(f"no space left for the {what}")
        text = f"{self._prefix}the {what} cannot be made: {error.strerror or error}"
        if number in _UNFIT:
            return InvalidValue(text)
        if number == errno.EACCES and os.geteuid() == 0:  # fs.protected_symlinks; Docker fails there too
            return InvalidValue(f"{text}; Linux follows no foreign link in a sticky directory")
        if number in (errno.EPERM, errno.EACCES):
            return NotPermitted(text, hint="run as root")
        if number == errno.ENOSYS:
            return Unavailable("this kernel has no openat2", hint="dmthin needs Linux 5.6 or later")
        return KernelError(text, errno=number)


def unpack(
    source: str | os.PathLike[str] | BinaryIO | Source,
    root: int | str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    keep_owners: bool = True,
    max_entries: int | None = None,
) -> Unpacked:
    """Unpack an archive or copy a directory below `root`: what `open_source` gave, or will give for `source`.

    `progress` hears how far it is: every 256 entries, every 4 MiB of a large file, and at the end.
    Raises what `open_source` and `Unpacker.apply` raise.
    """
    with (
        nullcontext(source) if isinstance(source, Source) else open_source(source) as entries,
        Unpacker(root, source=entries.name, keep_owners=keep_owners, max_entries=max_entries) as unpacker,
    ):

        def tell(more: int = 0) -> None:
            if progress is not None:
                progress(Progress(unpacker.entries, unpacker.bytes + more, entries.position, entries.total))

        for entry, data in entries:
            unpacker.apply(entry, _Told(data, tell) if entry.size > _CHUNK else data)
            if unpacker.entries % _PROGRESS_ENTRIES == 0:
                tell()
        unpacker.close()
        tell()
        return Unpacked(unpacker.entries, unpacker.bytes)


class _Told:
    """A reader of much data that tells of its progress."""

    def __init__(self, inner: Reader, tell: Callable[[int], None]) -> None:
        self._inner = inner
        self._tell = tell
        self._read = self._told = 0

    def read(self, limit: int, /) -> bytes:
        piece = self._inner.read(limit)
        self._read += len(piece)
        if self._read - self._told >= _PROGRESS_BYTES:
            self._told = self._read
            self._tell(self._read)
        return piece


def _through_proc(parent: OpenDirectory, name: bytes) -> bytes:
    """A path to a link or node, for calls that take neither a parent's descriptor nor the file's own."""
    return b"/proc/self/fd/%d/%b" % (parent.fd, name)


def _has_room(target: int | bytes) -> bool:
    room = os.statvfs(target if isinstance(target, int) else os.path.dirname(target))  # noqa: PTH120
    return room.f_bavail > 0
