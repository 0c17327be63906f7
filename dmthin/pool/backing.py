"""The two devices below a pool: a sparse file under a loop device, or a block device of the administrator's."""

from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import AlreadyExists, InvalidValue, NotFound, Unavailable
from dmthin.kernel import block, loop, udev
from dmthin.units import format_size

_DEVICE_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Backing:
    """One device of a pool, known by its path; whether that is a file or a block device, the path tells."""

    path: Path
    is_file: bool

    def attach(self) -> str:
        """The device as `major:minor`; a file gets a loop device unless it has one already.

        Raises Unavailable where the file is missing, or the device does not come within 10 seconds.
        """
        if not self.is_file:
            udev.wait_for_block_device(self.path, _DEVICE_WAIT_SECONDS)
            return block.number(self.path)
        if not self.path.exists():
            raise Unavailable(f"the pool's file {self.path} is missing", hint="restore it, or destroy the pool")
        return block.number(Path((loop.find(self.path) or loop.attach(self.path)).node))

    def detach(self) -> None:
        """Release the loop device; nothing to do for a block device, or where there is none."""
        if self.is_file and (device := loop.find(self.path)):
            device.detach()

    def attached_number(self) -> str | None:
        """`major:minor` if the device is there now."""
        if not self.is_file:
            return block.number(self.path) if block.is_block_device(self.path) else None
        device = loop.find(self.path)
        return block.number(Path(device.node)) if device else None

    def is_at(self, number: str) -> bool:
        """Whether the device with this `major:minor` is this one; quick, for it looks at no other."""
        if not self.is_file:
            return block.is_block_device(self.path) and block.number(self.path) == number
        return loop.is_at(self.path, number)

    def node(self) -> Path:
        """The device's node. Raises NotFound while a file has no loop."""
        if not self.is_file:
            return self.path
        device = loop.find(self.path)
        if device is None:
            raise NotFound(f"{self.path} has no loop device")
        return Path(device.node)

    def size(self) -> int:
        """Bytes of the device or the file."""
        return block.size(self.path)

    def allocated(self) -> int:
        """Bytes that it takes from what lies below: the blocks of a file, all of a device."""
        return block.allocated(self.path) if self.is_file else self.size()

    def make(self, length: int) -> None:
        """Make the sparse file. AlreadyExists if there is one."""
        if self.path.exists():
            raise AlreadyExists(f"{self.path} exists already", hint="remove it, or choose another --root")
        block.make_sparse(self.path, length)

    def grow(self, length: int) -> None:
        """Let the device show at least `length` bytes: a file is extended, a block device has to be that large.

        Safe to repeat. Raises InvalidValue.
        """
        if self.is_file:
            block.grow_sparse(self.path, length)
            if device := loop.find(self.path):
                device.refresh_size()
        elif self.size() < length:
            raise InvalidValue(
                f"{self.path} has {format_size(self.size())}, less than {format_size(length)}",
                hint="grow the device first, or ask for less",
            )
