"""Creation of files, symbolic links, hard links, devices and fifos in an open directory."""

import os
import stat
from collections.abc import Callable

from dmthin.errors import InvalidValue
from dmthin.layers.attributes import AttributeSetter
from dmthin.layers.confine import MAX_PATH, ConfinedTree, OpenDirectory, split
from dmthin.layers.content import TruncatedData, write_all, write_sparse
from dmthin.layers.entry import Entry, EntryType, Reader, shown

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}

Create = Callable[[Entry, OpenDirectory, bytes, Reader], None]
"""Creates one entry in a directory, under a name, with data.

Raises FileExistsError if the name is taken, InvalidValue for an invalid entry, and OSError.
"""


class NodeWriter:
    """Creates the inode of an entry, of any type but a directory, with its data and attributes.

    `create` has the function for each type. Targets of hard links are resolved in `tree`. With `layer`, zeros in the
    data become holes, because a layer's tar has none, and a hard link's inode gets the attributes in the link's header,
    as in Docker and containerd. Messages begin with `prefix`.
    """

    def __init__(self, tree: ConfinedTree, attributes: AttributeSetter, *, prefix: str, layer: bool) -> None:
        self._tree = tree
        self._attributes = attributes
        self._prefix = prefix
        self._layer = layer
        self.create: dict[EntryType, Create] = {
            EntryType.FILE: self._file,
            EntryType.SYMLINK: self._symlink,
            EntryType.HARDLINK: self._hardlink,
            EntryType.CHAR_DEVICE: self._node,
            EntryType.BLOCK_DEVICE: self._node,
            EntryType.FIFO: self._node,
        }

    def _file(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        """Create a regular file. Raise InvalidValue for data that is shorter than the size."""
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent.fd)
        try:
            try:
                self._fill(fd, entry, data)
            except TruncatedData:
                raise self._invalid(f"the data of {shown(entry.path)} is shorter than its size") from None
            self._attributes.set_on_fd(entry, fd, inherited=parent.has_default_acl)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _fill(self, fd: int, entry: Entry, data: Reader) -> None:
        if self._layer:
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
        """Create a symbolic link. Raise InvalidValue for an empty target, or one with a NUL."""
        if not entry.link or b"\0" in entry.link:
            raise self._invalid(f"the symbolic link {shown(entry.path)} has an invalid target")
        os.symlink(entry.link, name, dir_fd=parent.fd)
        self._attributes.set_on_name(entry, parent.fd, name, inherited=parent.has_default_acl)

    def _node(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        os.mknod(name, _NODES[entry.type] | 0o600, entry.device, dir_fd=parent.fd)
        self._attributes.set_on_name(entry, parent.fd, name, inherited=parent.has_default_acl)

    def _hardlink(self, entry: Entry, parent: OpenDirectory, name: bytes, data: Reader) -> None:
        """Link to a file, device, fifo or symbolic link below the root, whose attributes stay unless this is a `layer`.

        Raise InvalidValue if the target is missing, a directory or the root.
        """
        if len(entry.link) > MAX_PATH or b"\0" in entry.link:
            raise self._invalid(f"the hard link {shown(entry.path)} has an invalid target")
        target_parent, target = split(entry.link)
        subject = f"the hard link {shown(entry.path)} refers to {shown(entry.link)}, which"
        if not target:
            raise self._invalid(f"{subject} is the root")
        try:
            directory = self._tree.directory(target_parent)
            info = os.lstat(target, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._invalid(f"{subject} does not exist") from None
        if stat.S_ISDIR(info.st_mode):
            raise self._invalid(f"{subject} is a directory")
        try:
            os.link(target, name, src_dir_fd=directory.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:
            # A link to itself, or a second identical one, must not remove the name: it may be the target's last.
            there = os.lstat(name, dir_fd=parent.fd)
            if (there.st_dev, there.st_ino) != (info.st_dev, info.st_ino):
                raise
        if self._layer:
            self._attributes.set_on_link(entry, parent.fd, name, is_symlink=stat.S_ISLNK(info.st_mode))

    def _invalid(self, text: str) -> InvalidValue:
        return InvalidValue(self._prefix + text)
