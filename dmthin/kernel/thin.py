"""Tables and status lines of the thin-pool and thin targets.

Source: Documentation/admin-guide/device-mapper/thin-provisioning.rst and drivers/md/dm-thin.c. Tables have sectors;
the values here are in bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dmthin.errors import KernelError
from dmthin.kernel.devicemapper import Target
from dmthin.units import KIB, METADATA_BLOCK, MIB, SECTOR

MIN_BLOCK_SIZE = 64 * KIB
MAX_BLOCK_SIZE = 1024 * MIB
MAX_DEVICE_ID = (1 << 24) - 1
MAX_METADATA_SIZE = 255 * 16320 * METADATA_BLOCK
"""Bytes of metadata that the kernel can use: 255 bitmaps of 16320 blocks, 15.9 GiB."""

_COMMIT_RESERVE = 4096
"""Metadata blocks that the kernel reserves for its own commits, at most a tenth of the device (dm-thin-metadata.c)."""


class PoolMode(StrEnum):
    """The mode of a pool, in the words of its status line."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA_SPACE = "out_of_data_space"
    FAIL = "fail"


class PoolFeature(StrEnum):
    """Optional words of a thin-pool table."""

    SKIP_BLOCK_ZEROING = "skip_block_zeroing"
    IGNORE_DISCARD = "ignore_discard"
    NO_DISCARD_PASSDOWN = "no_discard_passdown"
    READ_ONLY = "read_only"
    ERROR_IF_NO_SPACE = "error_if_no_space"


@dataclass(frozen=True, slots=True)
class PoolTable:
    """The table of a pool: one thin-pool target. Sizes in bytes, `low_water` in blocks, devices as `major:minor`."""

    size: int
    metadata_device: str
    data_device: str
    block_size: int
    low_water: int
    features: tuple[str, ...] = (PoolFeature.SKIP_BLOCK_ZEROING,)

    def target(self) -> Target:
        """Return the line of the table."""
        text = f"{self.metadata_device} {self.data_device} {self.block_size // SECTOR} {self.low_water}"
        if self.features:
            text += f" {len(self.features)} {' '.join(self.features)}"
        return Target(0, self.size // SECTOR, "thin-pool", text)

    @classmethod
    def parse(cls, table: Sequence[Target]) -> "PoolTable":
        """Return what a live table says. Raise KernelError if it is not a pool's."""
        target = _only(table, "thin-pool")
        metadata, data, block, low_water, *rest = target.text.split()
        features = tuple(rest[1 : 1 + int(rest[0])]) if rest else ()
        return cls(target.length * SECTOR, metadata, data, int(block) * SECTOR, int(low_water), features)


@dataclass(frozen=True, slots=True)
class ThinTable:
    """The table of a volume, one thin target. `size` in bytes, the device as `major:minor`."""

    size: int
    pool_device: str
    device_id: int

    def target(self) -> Target:
        """Return the line of the table."""
        return Target(0, self.size // SECTOR, "thin", f"{self.pool_device} {self.device_id}")

    @classmethod
    def parse(cls, table: Sequence[Target]) -> "ThinTable":
        """Return what a live table says. Raise KernelError if it is not a volume's."""
        target = _only(table, "thin")
        pool, device_id, *_ = target.text.split()
        return cls(target.length * SECTOR, pool, int(device_id))


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Every field of a pool's status line. That of a pool in mode `fail` has only the mode.

    `metadata_used_blocks` is the kernel's count, in which the reserve for its own commits is used.
    """

    mode: PoolMode
    transaction_id: int = 0
    metadata_used_blocks: int = 0
    metadata_total_blocks: int = 0
    data_used_blocks: int = 0
    data_total_blocks: int = 0
    held_metadata_root: int | None = None
    discard: str = ""
    no_space_policy: str = ""
    needs_check: bool = False
    metadata_low_water_blocks: int = 0

    @property
    def metadata_reserve_blocks(self) -> int:
        """The reserve, which counts as used even in an empty pool: 4096 blocks or a tenth, whichever is less."""
        return min(_COMMIT_RESERVE, self.metadata_total_blocks // 10, self.metadata_used_blocks)

    @property
    def metadata_net_used_blocks(self) -> int:
        """The metadata blocks in use, without the reserve."""
        return self.metadata_used_blocks - self.metadata_reserve_blocks

    @classmethod
    def parse(cls, status: Sequence[Target]) -> "PoolStatus":
        """Return what a status line says. Raise KernelError if it is not a pool's."""
        fields = _only(status, "thin-pool").text.split()
        if fields in (["Fail"], ["Error"]):
            return cls(PoolMode.FAIL)
        metadata_used, metadata_total = (int(part) for part in fields[1].split("/"))
        data_used, data_total = (int(part) for part in fields[2].split("/"))
        return cls(
            mode=PoolMode(fields[4]),
            transaction_id=int(fields[0]),
            metadata_used_blocks=metadata_used,
            metadata_total_blocks=metadata_total,
            data_used_blocks=data_used,
            data_total_blocks=data_total,
            held_metadata_root=None if fields[3] == "-" else int(fields[3]),
            discard=fields[5],
            no_space_policy=fields[6],
            needs_check=fields[7] == "needs_check",
            metadata_low_water_blocks=int(fields[8]) if len(fields) > 8 else 0,
        )


@dataclass(frozen=True, slots=True)
class ThinStatus:
    """A volume's status in bytes, None where the pool has failed or has no live table."""

    mapped: int | None
    highest_mapped: int | None

    @classmethod
    def parse(cls, status: Sequence[Target]) -> "ThinStatus":
        """Return what a status line says. Raise KernelError if it is not a volume's."""
        fields = _only(status, "thin").text.split()
        if len(fields) != 2:
            return cls(None, None)
        # The kernel gives the number of the highest mapped sector, and the size up to its end is wanted.
        highest = 0 if fields[1] == "-" else (int(fields[1]) + 1) * SECTOR
        return cls(int(fields[0]) * SECTOR, highest)


def _only(targets: Sequence[Target], kind: str) -> Target:
    if len(targets) != 1 or targets[0].type != kind:
        found = ", ".join(target.type for target in targets) or "no table"
        raise KernelError(f"expected a device with one {kind} target, found: {found}")
    return targets[0]
