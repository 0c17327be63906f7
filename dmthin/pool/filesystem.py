"""The file systems that volumes carry: ext4 and XFS. ext4(5), mkfs.ext4(8), resize2fs(8), xfs(5), mkfs.xfs(8)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from dmthin.errors import InvalidValue
from dmthin.kernel import block, process
from dmthin.kernel.cstruct import U64, CStruct
from dmthin.os_errors import RIGHTS, os_failure
from dmthin.steps import step
from dmthin.units import MIB, TIB, format_exact

_MKFS_SECONDS = 600.0
_GROW_SECONDS = 600.0


class FileSystem(ABC):
    """One kind of file system, and how it is made, mounted and grown on a thin volume."""

    name: ClassVar[str]
    mount_options: ClassVar[str] = ""
    """Options of every mount of it; the user's come after them."""

    min_size: ClassVar[int]
    """Bytes; mkfs refuses less."""

    max_size: ClassVar[int]
    """Bytes; the program that grows it refuses more."""

    own_inodes: ClassVar[int]
    """Inodes that are in use in an empty one."""

    def make(self, node: str, arguments: Sequence[str]) -> None:
        """Make it on a block device, with the user's arguments of mkfs. Raise ToolFailed, TimeLimit, Unavailable."""
        with step("mkfs", node):
            process.run(*self.make_command(node, arguments), timeout=_MKFS_SECONDS)

    def grow(self, node: str, mount_point: Path) -> None:
        """Extend a mounted one to the size of its device; do nothing if it has that.

        Raise ToolFailed, TimeLimit, Unavailable.
        """
        with step("grow file system", node):
            process.run(*self.grow_command(node, mount_point), timeout=_GROW_SECONDS)

    def require_size(self, size: int) -> None:
        """Raise InvalidValue for a volume of `size` bytes that it cannot fill."""
        if size > self.max_size:
            hint = f"give at most {format_exact(self.max_size)}"
            raise InvalidValue(f"{format_exact(size)} is too large for {self.name}", hint=hint)
        if size < self.min_size:
            hint = f"give at least {format_exact(self.min_size)}"
            raise InvalidValue(f"{format_exact(size)} is too small for {self.name}", hint=hint)

    @abstractmethod
    def make_command(self, node: str, arguments: Sequence[str]) -> list[str]:
        """Return the words of the mkfs command; the user's arguments come last, so that they win."""

    @abstractmethod
    def grow_command(self, node: str, mount_point: Path) -> list[str]:
        """Return the words of the command that extends a mounted one to the size of its device."""

    @abstractmethod
    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Raise InvalidValue for arguments of mkfs by which parts of a base would not be written."""

    @abstractmethod
    def is_clean(self, node: Path) -> bool:
        """Return whether the superblock says that it can be mounted from a device that takes no write."""

    @abstractmethod
    def inodes(self, node: Path) -> int:
        """Return the inodes in use of an unmounted one, less `own_inodes`, as its superblock has them."""

    @abstractmethod
    def set_no_space_retries(self, node: str, retries: int) -> None:
        """Set how often a mounted one retries a metadata write that met a full pool; with 0 it fails.

        It is dm.xfs_nospace_max_retries, and ext4 has no such setting. Raise KernelError, NotPermitted.
        """


class _Ext4Superblock(NamedTuple):
    """struct ext4_super_block, the fields that are read here."""

    inodes: Annotated[int, "I", 0x0]
    free_inodes: Annotated[int, "I", 0x10]
    incompatible_features: Annotated[int, "I", 0x60]


class _XfsSuperblock(NamedTuple):
    """struct xfs_dsb: sb_icount and sb_ifree."""

    allocated_inodes: Annotated[int, "Q", 128]
    free_inodes: U64


_EXT4_SUPERBLOCK = CStruct("<", _Ext4Superblock)
_EXT4_SUPERBLOCK_OFFSET = 1024
_EXT4_RECOVER = 0x4
_XFS_SUPERBLOCK = CStruct(">", _XfsSuperblock)


class Ext4(FileSystem):
    """ext4. Its tables and its journal are always written in full.

    The pool does not zero a block that is written in part, so what is left unwritten of it could hold the journal of a
    volume that was deleted, with the same UUID, and be replayed after a power cut.
    """

    name = "ext4"
    min_size = 16 * MIB
    max_size = 16 * TIB
    own_inodes = 10

    _EXTENDED = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    _FIXED = ("lazy_itable_init", "lazy_journal_init", "assume_storage_prezeroed")

    def make_command(self, node: str, arguments: Sequence[str]) -> list[str]:
        extended, others = _split_extended(arguments)
        return ["mkfs.ext4", "-q", "-E", ",".join((self._EXTENDED, *extended)), *others, node]

    def grow_command(self, node: str, mount_point: Path) -> list[str]:
        return ["resize2fs", node]

    def check_arguments(self, arguments: Sequence[str]) -> None:
        for option in self._FIXED:
            if any(option in argument for argument in arguments):
                raise InvalidValue(f"dm.mkfsarg: {option} cannot be chosen", hint="bases are always written in full")

    def is_clean(self, node: Path) -> bool:
        return not self._superblock(node).incompatible_features & _EXT4_RECOVER

    def inodes(self, node: Path) -> int:
        superblock = self._superblock(node)
        return superblock.inodes - superblock.free_inodes - self.own_inodes

    def set_no_space_retries(self, node: str, retries: int) -> None:
        pass

    def _superblock(self, node: Path) -> _Ext4Superblock:
        return _EXT4_SUPERBLOCK.unpack(block.read(node, _EXT4_SUPERBLOCK.size, _EXT4_SUPERBLOCK_OFFSET))


class Xfs(FileSystem):
    """XFS. It mounts a UUID once only, and a snapshot has its origin's."""

    name = "xfs"
    mount_options = "nouuid"
    min_size = 300 * MIB
    max_size = 1024 * TIB
    own_inodes = 3

    def make_command(self, node: str, arguments: Sequence[str]) -> list[str]:
        return ["mkfs.xfs", "-q", "-K", *arguments, node]

    def grow_command(self, node: str, mount_point: Path) -> list[str]:
        return ["xfs_growfs", "-d", str(mount_point)]

    def check_arguments(self, arguments: Sequence[str]) -> None:
        pass

    def is_clean(self, node: Path) -> bool:
        """Return False: the superblock does not say."""
        return False

    def inodes(self, node: Path) -> int:
        superblock = _XFS_SUPERBLOCK.unpack(block.read(node, _XFS_SUPERBLOCK.size))
        return superblock.allocated_inodes - superblock.free_inodes - self.own_inodes

    def set_no_space_retries(self, node: str, retries: int) -> None:
        knob = Path("/sys/fs/xfs") / Path(node).name / "error/metadata/ENOSPC/max_retries"
        try:
            knob.write_text(str(retries))
        except OSError as error:
            raise os_failure(error, f"set {knob}", RIGHTS) from None


EXT4 = Ext4()
XFS = Xfs()
FILE_SYSTEMS: dict[str, FileSystem] = {kind.name: kind for kind in (EXT4, XFS)}


def by_name(name: str) -> FileSystem:
    """Return the file system of that name. Raise InvalidValue."""
    try:
        return FILE_SYSTEMS[name]
    except KeyError:
        known = " or ".join(FILE_SYSTEMS)
        raise InvalidValue(f"dm.fs: {name!r} is not supported", hint=f"use {known}") from None


def join_options(*options: str) -> str:
    """Return mount options as one comma-separated string."""
    return ",".join(filter(None, options))


def _split_extended(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of all -E among arguments of mkfs.ext4, which heeds one of them only, and the others."""
    extended: list[str] = []
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument.startswith("-E"):
            extended.append(argument[2:] or next(left, ""))
        else:
            others.append(argument)
    return extended, others
