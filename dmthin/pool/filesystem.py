"""The file systems that volumes carry: ext4 and XFS. ext4(5), mkfs.ext4(8), resize2fs(8), xfs(5), mkfs.xfs(8)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from dmthin.errors import InvalidValue
from dmthin.kernel import block, process, xfs
from dmthin.kernel.cstruct import U64, CStruct
from dmthin.os_errors import RIGHTS, os_failure
from dmthin.steps import step
from dmthin.units import KIB, MIB, TIB, format_exact

_MKFS_SECONDS = 600.0
_GROW_SECONDS = 600.0
_STRIDE_GROUPS = 1024
"""Groups of blocks by which a file system is extended at a time: 128G for ext4 with blocks of 4K, in a second or so."""


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

    def grow(self, node: str, mount_point: Path, size: int) -> None:
        """Extend a mounted one to the `size` in bytes of its device; do nothing if it has that.

        The kernel does not look for signals while it extends a file system. So that an interruption need not wait for
        minutes, that is done in steps, and nothing extends it any more when this raises.
        Raise ToolFailed, TimeLimit, Unavailable, NotFound, KernelError.
        """
        with step("grow file system", node):
            done, stride = self.size(node, mount_point), _STRIDE_GROUPS * self.group_size(node, mount_point)
            while (done := done + stride) < size:
                process.run(*self.grow_command(node, mount_point, done), timeout=_GROW_SECONDS, to_end=True)
            process.run(*self.grow_command(node, mount_point), timeout=_GROW_SECONDS, to_end=True)

    def require_growth(self, node: Path, size: int) -> None:
        """Raise InvalidValue if the one on a device, mounted or not, cannot be extended to `size` bytes."""
        limit, why = self.growth_limit(node)
        if size > limit:
            raise InvalidValue(
                f"{format_exact(size)} is too large for this {self.name}",
                hint=f"{why} it grows to at most {format_exact(limit)}",
            )

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
    def grow_command(self, node: str, mount_point: Path, size: int | None = None) -> list[str]:
        """Return the words of the command that extends a mounted one to the size of its device, or to `size` bytes."""

    @abstractmethod
    def growth_limit(self, node: Path) -> tuple[int, str]:
        """Return the bytes to which the one on a device can be extended, and what of it sets that limit, in words."""

    @abstractmethod
    def size(self, node: str, mount_point: Path) -> int:
        """Return the bytes of a mounted one now. Raise NotFound, KernelError."""

    @abstractmethod
    def group_size(self, node: str, mount_point: Path) -> int:
        """Return the bytes of a group of its blocks, which is the unit in which it is extended."""

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
    blocks: Annotated[int, "I", 0x4]
    free_inodes: Annotated[int, "I", 0x10]
    first_block: Annotated[int, "I", 0x14]
    log_block_size: Annotated[int, "I", 0x18]
    group_blocks: Annotated[int, "I", 0x20]
    group_inodes: Annotated[int, "I", 0x28]
    incompatible_features: Annotated[int, "I", 0x60]
    descriptor_size: Annotated[int, "H", 0xFE]
    high_blocks: Annotated[int, "I", 0x150]

    @property
    def block_size(self) -> int:
        """Bytes."""
        return 1024 << self.log_block_size

    @property
    def has_64_bits(self) -> bool:
        """Whether block numbers have 64 bits, and group descriptors the length that the superblock says."""
        return bool(self.incompatible_features & _EXT4_64BIT)


class _XfsSuperblock(NamedTuple):
    """struct xfs_dsb: sb_icount and sb_ifree."""

    allocated_inodes: Annotated[int, "Q", 128]
    free_inodes: U64


_EXT4_SUPERBLOCK = CStruct("<", _Ext4Superblock)
_EXT4_SUPERBLOCK_OFFSET = 1024
_EXT4_RECOVER = 0x4
_EXT4_64BIT = 0x80
_EXT4_SHORT_DESCRIPTOR = 32
_MOST_INODES = (1 << 32) - 1
_MOST_SHORT_BLOCKS = (1 << 32) - 1
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

    def grow_command(self, node: str, mount_point: Path, size: int | None = None) -> list[str]:
        return ["resize2fs", node] if size is None else ["resize2fs", node, f"{size // KIB}K"]

    def growth_limit(self, node: Path) -> tuple[int, str]:
        """Return the limit of resize2fs and the kernel, by the superblock.

        All descriptors must fit into the first group (resize2fs/main.c), whatever was reserved for them when it was
        made: the kernel goes on with meta_bg then. Inodes, and blocks without the feature 64bit, are counted in 32 bits
        (ext4_resize_fs in fs/ext4/resize.c).
        """
        has = self._superblock(node)
        descriptor = has.descriptor_size if has.has_64_bits else _EXT4_SHORT_DESCRIPTOR
        descriptors = (has.group_blocks - has.first_block) * (has.block_size // max(descriptor, _EXT4_SHORT_DESCRIPTOR))
        groups = min(descriptors, _MOST_INODES // max(has.group_inodes, 1))
        blocks = groups * has.group_blocks
        if not has.has_64_bits:
            blocks = min(blocks, _MOST_SHORT_BLOCKS)
        limit = min(blocks * has.block_size, self.max_size)
        return limit // KIB * KIB, f"with its blocks of {format_exact(has.block_size)}"

    def size(self, node: str, mount_point: Path) -> int:
        has = self._superblock(Path(node))  # the kernel changes it in the page cache of the device
        return (has.blocks | (has.high_blocks << 32 if has.has_64_bits else 0)) * has.block_size

    def group_size(self, node: str, mount_point: Path) -> int:
        has = self._superblock(Path(node))
        return max(has.group_blocks, 1) * has.block_size

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

    def grow_command(self, node: str, mount_point: Path, size: int | None = None) -> list[str]:
        if size is None:
            return ["xfs_growfs", "-d", str(mount_point)]
        return ["xfs_growfs", "-D", str(size // xfs.geometry(mount_point).block_size), str(mount_point)]

    def growth_limit(self, node: Path) -> tuple[int, str]:
        return self.max_size, "as any other,"

    def size(self, node: str, mount_point: Path) -> int:
        has = xfs.geometry(mount_point)
        return has.blocks * has.block_size

    def group_size(self, node: str, mount_point: Path) -> int:
        has = xfs.geometry(mount_point)
        return has.group_blocks * has.block_size

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
