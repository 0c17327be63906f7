"""Whiteouts: entries of a layer that delete what a lower layer holds, and other special names of aufs.

`.wh.NAME` and `.wh..wh..opq` are specified by the OCI image specification, layer.md, "Whiteouts". Docker treats names
that begin with `.wh..wh.` at the root as metadata of aufs, and takes the files in `.wh..wh.plnk` for the targets of
hard links (pkg/archive/diff.go).
"""

from collections import defaultdict
from enum import Enum, auto

PREFIX = b".wh."
_AUFS_PREFIX = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
LINK_TARGETS = b".wh..wh.plnk"
"""The directory of aufs whose files are targets of hard links (pseudo-links), and not part of the tree."""


class WhiteoutKind(Enum):
    """The meaning of an entry's name in a layer."""

    NONE = auto()
    """Not a whiteout: the entry is created."""

    DELETE = auto()
    """Removes the name after the prefix."""

    OPAQUE = auto()
    """Removes what lower layers hold in its directory."""

    LINK_TARGET = auto()
    """Created as the target of hard links, and removed at the end."""

    IGNORED = auto()
    MALFORMED = auto()


def whiteout_kind(parent: bytes, name: bytes, *, is_file: bool) -> WhiteoutKind:
    """Return the meaning of an entry whose normalized path consists of `parent` and `name`."""
    top = parent.partition(b"/")[0] or name
    if top.startswith(_AUFS_PREFIX) and (parent or name != _OPAQUE):
        return WhiteoutKind.LINK_TARGET if top == LINK_TARGETS and parent and is_file else WhiteoutKind.IGNORED
    if not name.startswith(PREFIX):
        return WhiteoutKind.NONE
    if name == _OPAQUE:
        return WhiteoutKind.OPAQUE
    return WhiteoutKind.MALFORMED if name[len(PREFIX) :] in (b"", b".", b"..") else WhiteoutKind.DELETE


class CreatedNames:
    """The names that this layer has created, which an opaque whiteout must not remove.

    They are recorded by the inode of their directory, so that symbolic links in paths make no difference. A name whose
    inode number is reused need not be dropped: the new inode was created by this layer, with all that it holds.
    """

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: defaultdict[int, set[bytes]] = defaultdict(set)

    def add(self, directory: int, name: bytes) -> None:
        """Record that `name` was created in the directory with this inode number."""
        self._names[directory].add(name)

    def contains(self, directory: int, name: bytes) -> bool:
        """Return whether this layer created `name` in the directory with this inode number."""
        return directory in self._names and name in self._names[directory]
