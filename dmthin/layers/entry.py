"""One entry of a tree: what readers of archives, directories and differences give and what writers take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

MODE_BITS = 0o7777
"""Permissions with set-uid, set-gid and sticky; Docker puts the file type into a tar's mode too."""

_SHOWN_LENGTH = 200
NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})


class EntryType(StrEnum):
    """What an entry makes. A hard link is a second name for an entry that came before it."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHAR_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a tree and all that is known of it, its data excepted.

    Names are bytes, as the kernel has them, and unjudged: absolute, with `..`, empty or endless as they came.
    `size` is the length of the file in bytes. `segments` lists the (offset, length) runs of a sparse file
    that hold data, ascending, not empty, within `size`; None means that all of the file is data. `link` is
    the target of a symbolic link, or the path (from the root of the tree) of the entry that a hard link names
    once more; such an entry has the attributes of the first. `device` is as os.makedev gives it. The names of
    `xattrs` carry their name space ("security.capability") and are decoded with surrogateescape.
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
        """Bytes of data that the reader beside this entry gives: the file without its holes."""
        if self.segments is None:
            return self.size
        return sum(length for _, length in self.segments)


class Reader(Protocol):
    """The data of one entry, its segments one after the other; good until the next entry is asked for."""

    def read(self, limit: int, /) -> bytes:
        """At least one byte and at most `limit`, `b""` only after the last of `Entry.stored` bytes.

        Raises InvalidValue where the source ends or changes before that.
        """
        ...


class NoData:
    """The reader of an entry without data."""

    def read(self, limit: int, /) -> bytes:
        return b""


NO_DATA = NoData()


def shown(name: bytes) -> str:
    """A name for a message: one line, no control characters, no more than some 200 characters."""
    text = name.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > _SHOWN_LENGTH:
        text = f"{text[:_SHOWN_LENGTH]}… ({len(name)} bytes)"
    return text or "(an empty name)"
