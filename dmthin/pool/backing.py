"""The two devices below a pool: a sparse file under a loop device, or a block device of the administrator's.

A third kind, a part of a disk, is in `dmthin.pool.diskpart`. What a dry run prints of them is here too: the same steps
as commands.
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
    """One device of a pool; `path` is the file or the disk that holds it."""

    path: Path
    is_file: ClassVar[bool] = False

    @abstractmethod
    def attach(self) -> str:
        """The device as `major:minor`, made if there is none yet. Raises Unavailable where its place is missing."""

    @abstractmethod
    def detach(self) -> None:
        """Take away what `attach` made; nothing to do where that is not there."""

    @abstractmethod
    def attached_number(self) -> str | None:
        """`major:minor` if the device is there now."""

    @abstractmethod
    def is_at(self, number: str) -> bool:
        """Whether the device with this `major:minor` is this one; quick, for it looks at no other."""

    @abstractmethod
    def node(self) -> Path:
        """The device's node. Raises NotFound while it is not attached."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of it now, attached or not."""

    @abstractmethod
    def limit(self) -> int | None:
        """Bytes that it can have at most; None where only the host's file system knows."""

    @abstractmethod
    def grow(self, length: int) -> None:
        """Let the device show at least `length` bytes. Safe to repeat. Raises InvalidValue beyond the limit."""

    def require_room(self, length: int) -> None:
        """Raise InvalidValue if it cannot have so many bytes."""
        limit = self.limit()
        if limit is not None and length > limit:
            raise InvalidValue(f"{self.path} has only {format_exact(limit)}", hint="grow the device first")

    def allocated(self) -> int:
        """Bytes that it takes from what lies below."""
        return self.size()

    def make(self, length: int) -> None:  # noqa: B027  only a file is not there already
        """Make what is to hold `length` bytes. AlreadyExists if it is there already."""

    def make_plan(self, length: int) -> list[str]:
        """`make` as commands."""
        return []

    @abstractmethod
    def attach_plan(self) -> tuple[list[str], str]:
        """`attach` as commands, and the word that names the device in a table."""

    def detach_plan(self) -> list[str]:
        """`detach` as commands."""
        return []

    def grow_plan(self, length: int) -> list[str]:
        """`grow` as commands."""
        return []


@dataclass(frozen=True, slots=True)
class SparseFile(Backing):
    """A file of the store's own, under a loop device."""

    is_file = True

    def attach(self) -> str:
        if not self.path.exists():
            raise Unavailable(f"the pool's file {self.path} is missing", hint="restore it, or destroy the pool")
        return block.number(Path((loop.find(self.path) or loop.attach(self.path)).node))

    def detach(self) -> None:
        if device := loop.find(self.path):
            device.detach()

    def attached_number(self) -> str | None:
        device = loop.find(self.path)
        return block.number(Path(device.node)) if device else None

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
        """As for all; a device that is still to come has 10 seconds."""
        udev.wait_for_block_device(self.path, _DEVICE_WAIT_SECONDS)
        return block.number(self.path)

    def detach(self) -> None:
        """It is not ours to take away."""

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
