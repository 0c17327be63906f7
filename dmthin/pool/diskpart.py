"""A disk that a pool has for itself: a part for the metadata and a part for the data, each a linear device on it.

The metadata begins with the disk, so the disk's own first block tells what it holds. Each part begins smaller than its
region of the disk and grows to the end of that, which takes no more than a longer table.
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
"""How many times what it begins with the metadata may get of the disk's spare, at most."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a disk is divided, in bytes: the metadata's region ends and the data's begins at `border`."""

    border: int
    metadata_size: int
    data_size: int


def divide(size: int, data_percent: int, metadata_percent: int, block_size: int) -> Division:
    """Divide a disk of `size` bytes for a pool of this block size. Raises InvalidValue for a disk that is too small.

    Both begin with their percent of it. Of what is spare the metadata gets a half, but no more than three times what it
    begins with nor more than the kernel can use; the rest is the data's.
    """
    metadata_size = max(_LEAST_METADATA, min(size * metadata_percent // 100, MAX_METADATA_SIZE) // MIB * MIB)
    spare = size * (100 - data_percent - metadata_percent) // 100
    most = min(metadata_size + min(spare // 2, _METADATA_GROWTH * metadata_size), MAX_METADATA_SIZE)
    border = round_up(most, max(MIB, block_size))
    data_size = min(size * data_percent // 100, size - border) // block_size * block_size
    if data_size < block_size:
        raise InvalidValue(f"a disk of {format_exact(size)} is too small for a pool", hint="give a larger one")
    return Division(border, metadata_size, data_size)


@dataclass(frozen=True, slots=True)
class DiskPart(Backing):
    """A part of the disk `path` as a linear device: `length` bytes from `offset` on, which grow up to `end`.

    Without `end` it may take what the disk has, also when that has grown. `what` it holds is for messages. The device
    is made by ioctl and not by dmsetup, because only so udev can be told to leave it alone: the data of a pool may
    begin with a block that looks like a file system's.
    """

    what: str
    name: str
    uuid: str
    offset: int
    length: int
    end: int | None = None

    def attach(self) -> str:
        """The linear device, made or set right. AlreadyExists if that of another store has its name."""
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
        """Remove the linear device. InUse, after a moment's patience, while somebody has it open."""
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
                hint="grow the disk first" if self.end is None else "the rest of it is kept for data",
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
        """The device, if it is there and this store's."""
        try:
            info = dm.info(self.name)
        except NotFound:
            return None
        return info if info.uuid == self.uuid else None
