"""Owners, extended attributes, modes and times for what is being unpacked."""

import errno
import logging
import os

from dmthin.errors import InvalidValue, Unavailable
from dmthin.kernel.openat import chmod_node
from dmthin.layers.entry import Entry, EntryType, shown
from dmthin.layers.nodes import through_proc

logger = logging.getLogger(__name__)

_WARNINGS = 100
_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")


class AttributeSetter:
    """Gives what was made the attributes of its entry: owners only if it is to keep them, which needs root.

    Attributes that the file system or the kernel refuses are left out, with one warning for each name, as Docker
    does. Both methods raise OSError, InvalidValue for an attribute that is too large, and Unavailable without /proc.
    """

    def __init__(self, *, prefix: str, keep_owners: bool) -> None:
        self._prefix = prefix
        self._keep_owners = keep_owners
        self._warned: set[str] = set()

    def of_open(self, entry: Entry, fd: int, *, inherited: bool = False) -> None:
        """For an open file or directory, its times left aside; `inherited` if it is new where lists are handed down.

        In this order: chown takes capabilities and set-uid away.
        """
        if self._keep_owners:
            os.fchown(fd, entry.uid, entry.gid)
        if inherited:
            _disinherit(entry, fd)
        if entry.xattrs:
            self._xattrs(entry, fd)
        os.fchmod(fd, entry.mode)

    def of_name(self, entry: Entry, parent_fd: int, name: bytes, *, inherited: bool = False) -> None:
        """For a new link or node, which cannot be opened, its times included."""
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if inherited and entry.type is not EntryType.SYMLINK:
            _disinherit(entry, through_proc(parent_fd, name))
        if entry.xattrs:
            self._xattrs(entry, through_proc(parent_fd, name))
        if entry.type is not EntryType.SYMLINK:
            chmod_node(parent_fd, name, entry.mode)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)

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
                    raise InvalidValue(
                        f"{self._prefix}{what} is too large for this file system: {len(value)} bytes"
                    ) from error
                else:
                    raise


def _disinherit(entry: Entry, target: int | bytes) -> None:
    """Take away the access control lists that the directory above gave, if the entry has none of its own."""
    for name in _INHERITED:
        if name not in entry.xattrs:
            try:
                if isinstance(target, int):
                    os.removexattr(target, name)
                else:
                    os.removexattr(target, name, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EACCES):
                    raise


def _has_room(target: int | bytes) -> bool:
    room = os.statvfs(target if isinstance(target, int) else os.path.dirname(target))  # noqa: PTH120
    return room.f_bavail > 0
