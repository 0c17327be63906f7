"""The two devices below a pool: a sparse file with a loop device, or a block device of the administrator's.

A third kind, a part of a disk, is in `dmthin.pool.diskpart`. Each kind also gives its steps as commands, for dry runs.
"""

import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dmthin.errors import AlreadyExists, InvalidValue, NotFound, Unavailable
from dmthin.kernel import block, loop, udev
from dmthin.units import format_exact, format_size

_DEVICE_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Backing(ABC):
    """The data or the metadata device of a pool; `path` is the file or the disk that holds it."""

    path: Path
    is_file: ClassVar[bool] = False

    @abstractmethod
    def attach(self) -> str:
        """Return the device as `major:minor`, made if there is none yet.

        Raise Unavailable if its file or disk is missing, AlreadyExists if another store has a device of its name,
        NotFound, NotPermitted and KernelError as the kernel says.
        """

    @abstractmethod
    def detach(self) -> None:
        """Remove what `attach` made, if it is there. Raise InUse or TimeLimit if it is open, KernelError."""

    @abstractmethod
    def attached_number(self) -> str | None:
        """Return `major:minor`, None if the device is not there now."""

    @abstractmethod
    def is_at(self, number: str) -> bool:
        """Return whether the device with this `major:minor` is this one. Fast: it looks at no other device."""

    @abstractmethod
    def node(self) -> Path:
        """Return the device's node. Raise NotFound if it is not attached."""

    @abstractmethod
    def size(self) -> int:
        """Return its size in bytes, attached or not. Raise NotFound, NotPermitted."""

    @abstractmethod
    def limit(self) -> int | None:
        """Return the bytes that it can have at most, None if the host's file system limits it. Raise NotFound."""

    @abstractmethod
    def grow(self, length: int) -> None:
        """Grow the device to at least `length` bytes. Safe to repeat.

        Raise InvalidValue beyond the limit, NoDataSpace if the host's file system has no files that large, NotFound.
        """

    def require_room(self, length: int) -> None:
        """Raise InvalidValue if it cannot have so many bytes, NotFound if it is not there."""
        limit = self.limit()
        if limit is not None and length > limit:
            raise InvalidValue(f"{self.path} has only {format_exact(limit)}", hint="grow the device first")

    def allocated(self) -> int:
        """Return the bytes that it occupies on its file system or disk."""
        return self.size()

    def make(self, length: int) -> None:  # noqa: B027  only a file is not there already
        """Make the file for `length` bytes. Raise AlreadyExists if it is there already, NoDataSpace, NotPermitted."""

    def make_plan(self, length: int) -> list[str]:
        """Return `make` as commands."""
        return []

    @abstractmethod
    def attach_plan(self) -> tuple[list[str], str]:
        """Return `attach` as commands, and the word that names the device in a table."""

    def detach_plan(self) -> list[str]:
        """Return `detach` as commands."""
        return []

    def grow_plan(self, length: int) -> list[str]:
        """Return `grow` as commands."""
        return []


@dataclass(frozen=True, slots=True)
class SparseFile(Backing):
    """A sparse file of the store's own, with a loop device."""

    is_file = True

    def attach(self) -> str:
        if not self.path.exists():
            raise Unavailable(f"the pool's file {self.path} is missing", hint="restore it, or destroy the pool")
        return (loop.find(self.path) or loop.attach(self.path)).number

    def detach(self) -> None:
        if device := loop.find(self.path):
            device.detach()

    def attached_number(self) -> str | None:
        device = loop.find(self.path)
        return device.number if device else None

    def is_at(self, number: str) -> bool:
        return loop.is_at(self.path, number)

    def node(self) -> Path:
        device = loop.find(self.path)
        if device is None:
            raise NotFound(f"{self.path} has no loop device")
        return Path(device.node)

    def size(self) -> int:
        return block.size(self.path)

    def limit(self) -> int | None:
        return None

    def allocated(self) -> int:
        return block.allocated(self.path)

    def make(self, length: int) -> None:
        if self.path.exists():
            raise AlreadyExists(f"{self.path} exists already", hint="remove it, or choose another --root")
        block.make_sparse(self.path, length)

    def grow(self, length: int) -> None:
        block.grow_sparse(self.path, length)
        if device := loop.find(self.path):
            device.refresh_size()

    def make_plan(self, length: int) -> list[str]:
        return [f"truncate --size {length} {shlex.quote(str(self.path))}"]

    def attach_plan(self) -> tuple[list[str], str]:
        device = loop.find(self.path)
        made = f"$(losetup --find --show --direct-io=on {shlex.quote(str(self.path))})"
        return [], device.node if device else made

    def detach_plan(self) -> list[str]:
        device = loop.find(self.path)
        return [f"losetup --detach {device.node}"] if device else []

    def grow_plan(self, length: int) -> list[str]:
        return [*self.make_plan(length), f"losetup --set-capacity {self.node()}"]


@dataclass(frozen=True, slots=True)
class BlockDevice(Backing):
    """A whole block device of the administrator's."""

    def attach(self) -> str:
        """Wait for the device up to 10 seconds, as it may appear late at boot. Raise Unavailable after that."""
        udev.wait_for_block_device(self.path, _DEVICE_WAIT_SECONDS)
        return block.number(self.path)

    def detach(self) -> None:
        """Do nothing: the device is the administrator's."""

    def attached_number(self) -> str | None:
        return block.number(self.path) if block.is_block_device(self.path) else None

    def is_at(self, number: str) -> bool:
        return self.attached_number() == number

    def node(self) -> Path:
        return self.path

    def size(self) -> int:
        return block.size(self.path)

    def limit(self) -> int | None:
        return self.size()

    def grow(self, length: int) -> None:
        if self.size() < length:
            raise InvalidValue(
                f"{self.path} has {format_size(self.size())}, less than {format_size(length)}",
                hint="grow the device first, or ask for less",
            )

    def attach_plan(self) -> tuple[list[str], str]:
        return [], shlex.quote(str(self.path))
