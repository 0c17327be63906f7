"""One entry of a tree: the type that readers of archives and trees produce, and that writers consume."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

MODE_BITS = 0o7777
"""Permission bits, set-uid, set-gid and sticky. Docker also writes the file type into the mode field of a tar."""

NO_OWNER = -1
"""The id of an entry that has none: chown(2) leaves the owner as it is."""

_SHOWN_LENGTH = 200
NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})


class EntryType(StrEnum):
    """The type of an entry. A hard link is a further name of an earlier entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHAR_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class Entry:
    """The metadata of one path in a tree, without the file's data.

    Paths are bytes, as in the kernel, and not validated: they may be absolute, empty or too long, or contain `..`.
    `uid` and `gid` may be NO_OWNER. `size` is the length of the file in bytes. `segments` lists the (offset, length)
    extents of a sparse file that hold data: ascending, not empty, within `size`; None means that the file has no
    holes. `link` is the target of a symbolic link, or the path from the root of the tree of the entry that a hard
    link refers to; a hard link repeats the attributes of that entry. `device` is an os.makedev() number. Keys of
    `xattrs` include the namespace ("security.capability") and are decoded with surrogateescape.
    """

    path: bytes
    type: EntryType
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    device: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: NO_XATTRS)
    segments: tuple[tuple[int, int], ...] | None = None

    @property
    def stored(self) -> int:
        """The number of bytes that the entry's reader returns: the size without holes."""
        if self.segments is None:
            return self.size
        return sum(length for _, length in self.segments)


class Reader(Protocol):
    """The data of one entry, its segments concatenated; valid until the next entry is requested."""

    def read(self, limit: int, /) -> bytes:
        """Return 1 to `limit` bytes, or `b""` once all `Entry.stored` bytes have been read.

        Raise InvalidValue if the source ends or changes before that.
        """
        ...


class NoData:
    """The reader of an entry without data."""

    def read(self, limit: int, /) -> bytes:
        return b""


NO_DATA = NoData()


def shown(name: bytes) -> str:
    """Return a path for use in a message: one line, printable, cut to about 200 characters."""
    text = name.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > _SHOWN_LENGTH:
        text = f"{text[:_SHOWN_LENGTH]}… ({len(name)} bytes)"
    return text or "(an empty name)"
