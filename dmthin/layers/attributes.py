"""Setting owners, extended attributes, modes and times of unpacked inodes."""

import errno
import logging
import os

from dmthin.errors import InvalidValue, Unavailable
from dmthin.kernel.openat import chmod_node
from dmthin.layers.entry import Entry, EntryType, shown
from dmthin.layers.nodes import proc_path
from dmthin.layers.xattrs import ACLS

logger = logging.getLogger(__name__)

_WARNINGS = 100


class AttributeSetter:
    """Sets the attributes of an entry on its inode; the owner only with `keep_owners`, which needs root.

    Extended attributes that the file system or the kernel does not support, and invalid access control lists, are
    skipped with one warning for each name. Methods raise OSError, InvalidValue (a value that is too large, or that the
    kernel does not accept) and Unavailable (no /proc).
    """

    def __init__(self, *, prefix: str, keep_owners: bool) -> None:
        self._prefix = prefix
        self._keep_owners = keep_owners
        self._warned: set[str] = set()

    def set_on_fd(self, entry: Entry, fd: int, *, inherited: bool = False) -> None:
        """Set the attributes of an open file or directory, except its times.

        `inherited` is whether it was created in a directory with a default access control list.
        """
        # The owner comes first: chown(2) clears file capabilities and the set-uid bit.
        if self._keep_owners:
            os.fchown(fd, entry.uid, entry.gid)
        if inherited:
            _remove_inherited_acls(entry, fd)
        if entry.xattrs:
            self._xattrs(entry, fd)
        os.fchmod(fd, entry.mode)

    def set_on_name(self, entry: Entry, parent_fd: int, name: bytes, *, inherited: bool = False) -> None:
        """Set the attributes of a new link, device or fifo, which cannot be opened; its times included."""
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if inherited and entry.type is not EntryType.SYMLINK:
            _remove_inherited_acls(entry, proc_path(parent_fd, name))
        if entry.xattrs:
            self._xattrs(entry, proc_path(parent_fd, name))
        if entry.type is not EntryType.SYMLINK:
            chmod_node(parent_fd, name, entry.mode)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)

    def set_on_link(self, entry: Entry, parent_fd: int, name: bytes, *, is_symlink: bool) -> None:
        """Set the attributes in a hard link's header on its inode, as Docker does; of a symlink, no mode or times."""
        if not is_symlink:
            self.set_on_name(entry, parent_fd, name)
            return
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if entry.xattrs:
            self._xattrs(entry, proc_path(parent_fd, name))

    def _xattrs(self, entry: Entry, target: int | bytes) -> None:
        """Set the extended attributes of an entry. Raise InvalidValue, Unavailable, OSError."""
        for name, value in entry.xattrs.items():
            raw = name.encode("utf-8", "surrogateescape")
            what = f"the attribute {shown(raw)} of {shown(entry.path)}"
            try:
                if isinstance(target, int):
                    os.setxattr(target, raw, value)
                else:
                    os.setxattr(target, raw, value, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.ENOTSUP, errno.EPERM) or (error.errno == errno.EINVAL and name in ACLS):
                    # Skipped, as in Docker; and lists that are not complete, as in GNU tar.
                    if name not in self._warned and len(self._warned) < _WARNINGS:
                        self._warned.add(name)
                        logger.warning("skipped %s, and others of this name: %s", what, error.strerror)
                elif error.errno == errno.ENOENT and isinstance(target, bytes):
                    raise Unavailable(
                        f"cannot set {what} without /proc", hint="run: mount -t proc proc /proc"
                    ) from error
                elif error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) and _has_free_space(target):
                    # ext4 has one block of attributes for a file, and returns ENOSPC when that is full.
                    raise InvalidValue(
                        f"{self._prefix}{what} is too large for this file system: {len(value)} bytes"
                    ) from error
                elif error.errno == errno.EINVAL:  # such as a capability of an unknown revision
                    raise InvalidValue(f"{self._prefix}the kernel does not accept the value of {what}") from error
                else:
                    raise


def _remove_inherited_acls(entry: Entry, target: int | bytes) -> None:
    """Remove the access control lists inherited from the parent directory, unless the entry has its own."""
    for name in ACLS:
        if name not in entry.xattrs:
            try:
                if isinstance(target, int):
                    os.removexattr(target, name)
                else:
                    os.removexattr(target, name, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EACCES):
                    raise


def _has_free_space(target: int | bytes) -> bool:
    space = os.statvfs(target if isinstance(target, int) else os.path.dirname(target))  # noqa: PTH120
    return space.f_bavail > 0
