"""The marks of a layer that say what is gone: `.wh.NAME`, `.wh..wh..opq` and what else aufs left behind.

Described in the OCI image specification, layer.md, "Whiteouts"; that names which begin with `.wh..wh.` at the
root are aufs' own, and `.wh..wh.plnk` holds files for hard links to lead to, is Docker's.
"""

from collections import defaultdict
from enum import Enum, auto

PREFIX = b".wh."
_OWN = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
LINKED = b".wh..wh.plnk"


class Mark(Enum):
    """What an entry of a layer asks for."""

    NONE = auto()
    """To be made."""

    GONE = auto()
    """To remove the name behind the prefix."""

    EMPTIED = auto()
    """To remove what its directory held before this layer."""

    LINKED = auto()
    """To be made for hard links, and to be gone at the end."""

    IGNORED = auto()
    MALFORMED = auto()


def mark(parent: bytes, name: bytes, *, is_file: bool) -> Mark:
    """What the entry with this cleaned name, in two parts, asks for."""
    top = parent.partition(b"/")[0] or name
    if top.startswith(_OWN) and (parent or name != _OPAQUE):
        return Mark.LINKED if top == LINKED and parent and is_file else Mark.IGNORED
    if not name.startswith(PREFIX):
        return Mark.NONE
    if name == _OPAQUE:
        return Mark.EMPTIED
    return Mark.MALFORMED if name[len(PREFIX) :] in (b"", b".", b"..") else Mark.GONE


class Made:
    """The names that this layer made or touched, by the inode of their directory: links do not mislead it.

    An inode that is used anew is this layer's own, with all that it holds, so nothing need be taken back.
    """

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: defaultdict[int, set[bytes]] = defaultdict(set)

    def add(self, directory: int, name: bytes) -> None:
        """Keep in mind that `name` was made in the directory with this inode number."""
        self._names[directory].add(name)

    def holds(self, directory: int, name: bytes) -> bool:
        """Whether this layer made `name` there."""
        return directory in self._names and name in self._names[directory]
