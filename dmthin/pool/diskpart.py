"""A whole disk for a pool: one region for the metadata and one for the data, each with a linear device on it.

The metadata's region is the first, so that the disk's first block shows what the disk holds. Each linear device begins
smaller than its region. It can grow to the region's end, which takes no more than a longer table.
"""

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import AlreadyExists, InvalidValue, NotFound
from dmthin.kernel import block
from dmthin.kernel.devicemapper import DeviceInfo, Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import create_arguments, load_arguments
from dmthin.kernel.retry import retry_busy
from dmthin.kernel.thin import MAX_METADATA_SIZE
from dmthin.pool.backing import Backing, BlockDevice
from dmthin.units import MIB, SECTOR, format_exact, round_up

_LEAST_METADATA = 2 * MIB
_METADATA_GROWTH = 3
"""The share of the metadata in what is left of the disk, at most, as a multiple of the size that it begins with."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a disk is divided, in bytes: the metadata's region ends, and the data's begins, at `metadata_end`."""

    metadata_end: int
    metadata_size: int
    data_size: int


def divide(size: int, data_percent: int, metadata_percent: int, block_size: int) -> Division:
    """Return how to divide a disk of `size` bytes for a pool of this block size. Raise InvalidValue if it is too small.

    Data and metadata each begin with their percentage. The metadata's region gets half of what is left in addition,
    but no more than three times what the metadata begins with, and no more than the kernel can use.
    """
    metadata_size = max(_LEAST_METADATA, min(size * metadata_percent // 100, MAX_METADATA_SIZE) // MIB * MIB)
    left = size * (100 - data_percent - metadata_percent) // 100
    most = min(metadata_size + min(left // 2, _METADATA_GROWTH * metadata_size), MAX_METADATA_SIZE)
    metadata_end = round_up(most, max(MIB, block_size))
    data_size = min(size * data_percent // 100, size - metadata_end) // block_size * block_size
    if data_size < block_size:
        raise InvalidValue(f"a disk of {format_exact(size)} is too small for a pool", hint="give a larger one")
    return Division(metadata_end, metadata_size, data_size)


@dataclass(frozen=True, slots=True)
class DiskPart(Backing):
    """A part of the disk `path` as a linear device: `length` bytes from `offset` on, which can grow up to `end`.

    Without `end` it can grow to the end of the disk, also when the disk itself has grown. `what` names the content in
    messages. The device is made by ioctl and not by dmsetup, which cannot set the flags that keep udev's rules away
    from it: the data of a pool may begin with a block that looks like a file system's.
    """

    what: str
    name: str
    uuid: str
    offset: int
    length: int
    end: int | None = None

    def attach(self) -> str:
        """Make the linear device, or give it the right table. Raise AlreadyExists if another store has its name."""
        table = self._table(BlockDevice(self.path).attach(), self.length)
        with IoctlDeviceMapper() as dm:
            try:
                return dm.create(self.name, self.uuid, table).number
            except AlreadyExists:
                info = dm.info(self.name)
            if info.uuid != self.uuid:
                hint = "a store that was copied cannot be used beside the original"
                raise AlreadyExists(f"the device {self.name} is held by another store", hint=hint)
            if not info.live_table or dm.table(self.name) != table:
                dm.load(self.name, table)
                return dm.resume(self.name).number
            return dm.resume(self.name).number if info.suspended else info.number

    def detach(self) -> None:
        """Remove the linear device, if it is there. Raise InUse if it is open, and not for a moment only."""
        with IoctlDeviceMapper() as dm:
            if self._info(dm) is not None:
                with suppress(NotFound):
                    retry_busy(lambda: dm.remove(self.name))

    def attached_number(self) -> str | None:
        with IoctlDeviceMapper() as dm:
            info = self._info(dm)
            return info.number if info is not None and info.live_table else None

    def is_at(self, number: str) -> bool:
        return self.attached_number() == number

    def node(self) -> Path:
        with IoctlDeviceMapper() as dm:
            info = self._info(dm)
        if info is None:
            raise NotFound(f"the {self.what} of {self.path} has no device {self.name}")
        return Path(info.node)

    def size(self) -> int:
        return self.length

    def limit(self) -> int:
        return (block.size(self.path) if self.end is None else self.end) - self.offset

    def require_room(self, length: int) -> None:
        if length > self.limit():
            raise InvalidValue(
                f"{self.path} has room for only {format_exact(self.limit())} of {self.what}",
                hint="grow the disk first" if self.end is None else "the rest of it is for the data",
            )

    def grow(self, length: int) -> None:
        self.require_room(length)
        with IoctlDeviceMapper() as dm:
            if sum(target.length for target in dm.table(self.name)) * SECTOR < length:
                dm.load(self.name, self._table(block.number(self.path), length))
                dm.resume(self.name)

    def attach_plan(self) -> tuple[list[str], str]:
        arguments = create_arguments(self.name, self.uuid, self._table(str(self.path), self.length))
        return [] if self.attached_number() else [shlex.join(["dmsetup", *arguments])], f"/dev/mapper/{self.name}"

    def detach_plan(self) -> list[str]:
        return [f"dmsetup remove {self.name}"] if self.attached_number() else []

    def grow_plan(self, length: int) -> list[str]:
        arguments = load_arguments(self.name, self._table(str(self.path), length))
        return [shlex.join(["dmsetup", *arguments]), f"dmsetup resume {self.name}"]

    def _table(self, disk: str, length: int) -> list[Target]:
        return [Target(0, length // SECTOR, "linear", f"{disk} {self.offset // SECTOR}")]

    def _info(self, dm: IoctlDeviceMapper) -> DeviceInfo | None:
        """Return the state of the device, None if it is not there or another store's."""
        try:
            info = dm.info(self.name)
        except NotFound:
            return None
        return info if info.uuid == self.uuid else None
