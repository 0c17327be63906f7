"""Putting entries under a root, confined to it: no name, link or order of entries leads a write outside."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import BinaryIO

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace
from dmthin.kernel.openat import open_entry
from dmthin.layers.attributes import AttributeSetter
from dmthin.layers.confine import MAX_PATH, ConfinedTree, OpenDirectory, split
from dmthin.layers.content import CHUNK, EndsTooEarly, write_all, write_sparse
from dmthin.layers.entry import NO_DATA, Entry, EntryType, Reader, shown
from dmthin.layers.idmap import Owners, Unmapped
from dmthin.layers.source import Source, open_source
from dmthin.layers.whiteout import LINKED, PREFIX, Made, Mark, mark
from dmthin.os_errors import TREE_WRITE, explain
from dmthin.units import MIB

_PROGRESS_ENTRIES = 256
_PROGRESS_BYTES = 4 * MIB
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


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
    are both directories. With `keep_owners` (needs root) everything gets the entry's owner as `owners` maps
    it, else the caller's. Messages begin with `source`. Directories get their times when the unpacker is closed;
    use it as a context manager.

    With `layer`, entries are those of an image's layer, applied to the tree of the layer below: names that begin
    with `.wh.` say what is gone, and zeros in the data of files become holes, since a tar has none. The names
    that the layer makes are kept in memory then, because `.wh..wh..opq` spares them.

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
        layer: bool = False,
        owners: Owners | None = None,
    ) -> None:
        self._prefix = f"{source}: " if source else ""
        self._owners = owners or Owners()
        self._max_entries = max_entries
        self._attributes = AttributeSetter(prefix=self._prefix, keep_owners=keep_owners)
        self._made = Made() if layer else None
        self._linked = False
        self.entries = 0
        self.bytes = 0
        try:
            self._root = self._owners.root if keep_owners else None
        except Unmapped as error:
            raise self._wrong(str(error)) from None
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
            try:
                self._end_linked()
            finally:
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
        try:
            self._tree.trim()
            if self._made is not None and not self._is_to_be_made(entry, parent_path, name):
                self.bytes += entry.size
                return
            entry = self._owners.to_host(entry)
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
                self._note(parent, name)
        except Unmapped as error:
            raise self._wrong(str(error)) from None
        except OSError as error:
            raise self._explained(entry, error) from error
        self.bytes += entry.size

    def _is_to_be_made(self, entry: Entry, parent_path: bytes, name: bytes) -> bool:
        """Do what a layer's entry asks for if it only says what is gone; else it is an entry like others."""
        asked = mark(parent_path, name, is_file=entry.type is EntryType.FILE)
        if asked is Mark.NONE:
            return True
        if asked is Mark.MALFORMED:
            raise self._wrong(f"{shown(entry.path)} says of no name that it is gone")
        if asked is Mark.LINKED:
            if not self._linked:
                self._linked = True
                self._remove(self._tree.directory(b""), LINKED)  # a container may have made something there
            return True
        if asked is not Mark.IGNORED:
            try:
                parent = self._tree.directory(parent_path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            if asked is Mark.GONE:
                self._remove(parent, name[len(PREFIX) :])
            else:
                assert self._made is not None
                self._tree.empty(parent, self._made.holds)
        return False

    def _remove(self, parent: OpenDirectory, name: bytes) -> None:
        with suppress(FileNotFoundError):
            self._tree.remove(parent, name)

    def _end_linked(self) -> None:
        """Take away the files that were there only for hard links to lead to."""
        if self._linked:
            self._linked = False
            self._remove(self._tree.directory(b""), LINKED)

    def _note(self, parent: OpenDirectory, name: bytes) -> None:
        if self._made is not None:
            self._made.add(parent.identity[1], name)

    def _parent(self, entry: Entry, path: bytes) -> OpenDirectory:
        try:
            return self._tree.directory(path)
        except FileNotFoundError:
            pass
        try:
            return self._tree.make_directory(path, owner=self._root)
        except FileExistsError as error:
            link = shown(os.fsencode(error.filename))
            raise self._wrong(f"{shown(entry.path)} lies behind {link}, a link that leads nowhere") from None

    def _directory(self, entry: Entry, parent_path: bytes, name: bytes) -> None:
        inherited = False
        if name:
            parent = self._parent(entry, parent_path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent.fd)
                parent.dirty = inherited = True
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                    self._tree.remove(parent, name)
                    os.mkdir(name, 0o700, dir_fd=parent.fd)
                    inherited = True
            inherited = inherited and parent.hands_down
            self._note(parent, name)
            fd = open_entry(parent.fd, name)
            directory = self._tree.adopt(parent_path + b"/" + name if parent_path else name, fd)
        else:
            directory = self._tree.directory(b"")
        self._attributes.of_open(entry, directory.fd, inherited=inherited)
        directory.forget_attributes()
        directory.atime_ns = directory.mtime_ns = entry.mtime_ns
        directory.dirty = True

    def _file(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent.fd)
        try:
            try:
                self._fill(fd, entry, data)
            except EndsTooEarly:
                raise self._wrong(f"the data of {shown(entry.path)} ends before its size") from None
            self._attributes.of_open(entry, fd, inherited=parent.hands_down)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _fill(self, fd: int, entry: Entry, data: Reader) -> None:
        if self._made is not None:
            end = 0
            for offset, length in ((0, entry.size),) if entry.segments is None else entry.segments:
                end = write_sparse(fd, data, offset, length)
            if end < entry.size:
                os.ftruncate(fd, entry.size)
        elif entry.segments is None:
            write_all(fd, data, 0, entry.size)
        else:
            os.ftruncate(fd, entry.size)
            for offset, length in entry.segments:
                write_all(fd, data, offset, length)

    def _symlink(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        if not entry.link or b"\0" in entry.link:
            raise self._wrong(f"the symbolic link {shown(entry.path)} has no proper target")
        os.symlink(entry.link, name, dir_fd=parent.fd)
        self._attributes.of_name(entry, parent.fd, name, inherited=parent.hands_down)

    def _node(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        os.mknod(name, _NODES[entry.type] | 0o600, entry.device, dir_fd=parent.fd)
        self._attributes.of_name(entry, parent.fd, name, inherited=parent.hands_down)

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

    def _wrong(self, text: str) -> InvalidValue:
        return InvalidValue(self._prefix + text)

    def _explained(self, entry: Entry, error: OSError) -> DmthinError:
        what = f"{entry.type.value} {shown(entry.path)}"
        if error.errno in _FULL:
            return NoDataSpace(f"no space left for the {what}")
        failed, reason = f"{self._prefix}the {what} cannot be made", error.strerror or str(error)
        if error.errno == errno.EACCES and os.geteuid() == 0:  # fs.protected_symlinks; Docker fails there too
            return InvalidValue(f"{failed}: {reason}; Linux follows no foreign link in a sticky directory")
        return explain(error.errno or 0, failed, TREE_WRITE, reason=reason)


def unpack(
    source: str | os.PathLike[str] | BinaryIO | Source,
    root: int | str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    keep_owners: bool = True,
    max_entries: int | None = None,
    layer: bool = False,
    owners: Owners | None = None,
) -> Unpacked:
    """Unpack an archive or copy a directory below `root`: what `open_source` gave, or will give for `source`.

    `progress` hears how far it is: every 256 entries, every 4 MiB of a large file, and at the end.
    Raises what `open_source` and `Unpacker.apply` raise.
    """
    with (
        nullcontext(source) if isinstance(source, Source) else open_source(source) as entries,
        Unpacker(
            root,
            source=entries.name,
            keep_owners=keep_owners,
            max_entries=max_entries,
            layer=layer,
            owners=owners,
        ) as unpacker,
    ):

        def tell(more: int = 0) -> None:
            if progress is not None:
                progress(Progress(unpacker.entries, unpacker.bytes + more, entries.position, entries.total))

        for entry, data in entries:
            unpacker.apply(entry, _Told(data, tell) if entry.size > CHUNK else data)
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
