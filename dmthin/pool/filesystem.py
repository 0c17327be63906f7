"""The file systems that volumes carry: making, mounting, growing. ext4(5), mkfs.ext4(8), mkfs.xfs(8)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import InvalidValue, KernelError
from dmthin.failpoint import step
from dmthin.kernel import block, process
from dmthin.units import KIB, MIB, TIB, format_exact

_MKFS_SECONDS = 600.0
_GROW_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How one kind of file system is made, mounted and grown on a thin volume.

    `mount_options` go before the user's. A size in bytes below `min_size` is refused by mkfs, one above `max_size` by
    the tools that grow it. `own_inodes` are in use when it is empty.
    """

    name: str
    mkfs: tuple[str, ...]
    mount_options: str
    min_size: int
    max_size: int
    own_inodes: int

    def make(self, node: str, arguments: Sequence[str]) -> None:
        """Run mkfs on a block device. The user's arguments come last, so that they win; ext4's -E are put together."""
        with step(f"mkfs {node}"):
            process.run(*_merged([*self.mkfs, *arguments]), node, timeout=_MKFS_SECONDS)

    def grow(self, node: str, mount_point: Path) -> None:
        """Let a mounted file system fill its device. Fine if it does already."""
        with step(f"grow file system {node}"):
            if self.name == "xfs":
                process.run("xfs_growfs", "-d", str(mount_point), timeout=_GROW_SECONDS)
            else:
                process.run("resize2fs", node, timeout=_GROW_SECONDS)

    def is_clean(self, node: Path) -> bool:
        """Whether it can be mounted from a device that takes no write, as its superblock tells; XFS's does not."""
        return self.name == "ext4" and not _ext4(node).needs_recovery

    def inodes(self, node: Path) -> int:
        """The inodes in use but for the file system's own, as the superblock of an unmounted one tells."""
        if self.name == "ext4":
            return _ext4(node).inodes - self.own_inodes
        allocated, free = struct.unpack_from(">QQ", block.read(node, _SUPERBLOCKS), _XFS_INODES)
        return int(allocated) - int(free) - self.own_inodes

    def require_size(self, size: int) -> None:
        """Raise InvalidValue for a volume that this file system cannot fill."""
        if size % KIB:
            raise InvalidValue(f"{size} bytes are not a multiple of 1K", hint="give a rounder size")
        if size > self.max_size:
            hint = f"give at most {format_exact(self.max_size)}"
            raise InvalidValue(f"{format_exact(size)} is too large for {self.name}", hint=hint)
        if size < self.min_size:
            hint = f"give at least {format_exact(self.min_size)}"
            raise InvalidValue(f"{format_exact(size)} is too small for {self.name}", hint=hint)


EXT4 = FileSystem(
    name="ext4",
    # The tables and the journal are written in full. The pool does not zero a block that is written in part, so an
    # unwritten rest could hold a deleted sibling's journal, with the same UUID, and be replayed after a power cut.
    mkfs=("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    mount_options="",
    min_size=16 * MIB,
    max_size=16 * TIB,
    own_inodes=10,
)
XFS = FileSystem(
    name="xfs",
    mkfs=("mkfs.xfs", "-q", "-K"),
    # Every snapshot has its origin's UUID, and XFS mounts a UUID once.
    mount_options="nouuid",
    min_size=300 * MIB,
    max_size=1024 * TIB,
    own_inodes=3,
)
FILE_SYSTEMS = {fs.name: fs for fs in (EXT4, XFS)}


_SUPERBLOCKS = 4096
"""Bytes of a device in which both kinds have their superblock."""

_EXT4_SUPERBLOCK = 1024
_EXT4_RECOVER = 0x4
_XFS_INODES = 128


@dataclass(frozen=True, slots=True)
class _Ext4:
    inodes: int
    needs_recovery: bool


def _ext4(node: Path) -> _Ext4:
    """Of a superblock (ext4(5)): s_inodes_count, s_free_inodes_count, s_feature_incompat."""
    content = block.read(node, _SUPERBLOCKS)[_EXT4_SUPERBLOCK:]
    count, free = (int(struct.unpack_from("<I", content, offset)[0]) for offset in (0x0, 0x10))
    features = int(struct.unpack_from("<I", content, 0x60)[0])
    return _Ext4(count - free, bool(features & _EXT4_RECOVER))


_FIXED_EXTENDED = ("lazy_itable_init", "lazy_journal_init", "assume_storage_prezeroed")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise InvalidValue for mkfs arguments that would leave a base unwritten in part, which is not safe here."""
    for argument in arguments:
        for option in _FIXED_EXTENDED:
            if option in argument:
                raise InvalidValue(f"dm.mkfsarg: {option} cannot be chosen", hint="bases are always written in full")


def _merged(words: Sequence[str]) -> list[str]:
    """The words with all values of -E in its first place, since mkfs.ext4 heeds only one -E."""
    merged: list[str] = []
    place = None
    rest = iter(words)
    for word in rest:
        if not (word.startswith("-E") and words[0] == "mkfs.ext4"):
            merged.append(word)
            continue
        value = word[2:] or next(rest, "")
        if place is None:
            place = len(merged) + 1
            merged += ["-E", value]
        else:
            merged[place] += f",{value}"
    return merged


def by_name(name: str) -> FileSystem:
    """The file system of that name. Raises InvalidValue."""
    try:
        return FILE_SYSTEMS[name]
    except KeyError:
        known = " or ".join(FILE_SYSTEMS)
        raise InvalidValue(f"dm.fs: {name!r} is not supported", hint=f"use {known}") from None


def join_options(*options: str) -> str:
    """Mount options as one comma-separated string."""
    return ",".join(filter(None, options))


def set_xfs_retries(node: str, retries: int) -> None:
    """How often XFS retries a metadata write that met a full pool; 0 fails at once (dm.xfs_nospace_max_retries)."""
    knob = Path("/sys/fs/xfs") / Path(node).name / "error/metadata/ENOSPC/max_retries"
    try:
        knob.write_text(str(retries))
    except OSError as error:
        raise KernelError(f"cannot set {knob}: {error.strerror}", errno=error.errno or 0) from None
