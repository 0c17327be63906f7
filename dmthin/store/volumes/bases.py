"""Bases: a freshly formatted volume for each (file system, size, mkfs arguments), made once."""

from contextlib import suppress

from dmthin.pool.filesystem import FileSystem
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import Kind, NewVolume, State, Volume
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact, volume_size


class Bases:
    """The bases of one store. Their names begin with `@`, which no user's name does."""

    def __init__(self, ledger: Ledger, locks: Locks, volumes: Volumes) -> None:
        self._ledger = ledger
        self._locks = locks
        self._volumes = volumes

    def ensure(self, kind: FileSystem, size: int, mkfs_arguments: tuple[str, ...]) -> Volume:
        """Return the base of this description, made if there is none. The caller holds `lock` until it has used it.

        `size` in bytes. Raises InvalidValue (no size for the file system), NoDataSpace, ToolFailed (mkfs).
        """
        new = new_base(kind, size, mkfs_arguments)
        return self.find(new) or self._make(new, kind, mkfs_arguments)

    def find(self, new: NewVolume) -> Volume | None:
        """Return the base with this name, None if it is still to be made."""
        base = self._ledger.find(new.name)
        return base if base is not None and base.state is State.READY else None

    def lock(self) -> Lock:
        """Wait for the base lock: only its holder makes or removes a base, and takes snapshots of one."""
        return self._locks.base()

    def remove_unused(self) -> None:
        """Remove the bases without children. The next import makes them again."""
        with self.lock():
            for volume in self.unused():
                self._volumes.removal.remove(volume)

    def unused(self, *, without: Volume | None = None) -> list[Volume]:
        """Return the bases that have no children, or none but the volume `without`."""
        expected = {without.device_id} if without else set[int]()
        return [
            volume
            for volume in self._ledger.volumes()
            if volume.kind is Kind.BASE
            and volume.state is State.READY
            and expected.issuperset(child.device_id for child in self._ledger.children(volume.device_id))
        ]

    def _make(self, new: NewVolume, kind: FileSystem, mkfs_arguments: tuple[str, ...]) -> Volume:
        with self._volumes.creation.making(new, activate=True) as base:
            with self._volumes.mounts.open_device(base) as device:
                kind.make(device.info.node, mkfs_arguments)
            with self._volumes.mounts.mounted(base) as root, suppress(FileNotFoundError):
                # fsck makes it anew when it needs it; a container should not see it.
                (root / "lost+found").rmdir()
        return base.with_state(State.READY)


def new_base(kind: FileSystem, size: int, mkfs_arguments: tuple[str, ...]) -> NewVolume:
    """Return the base of this description, to be found or made: `@base/ext4/10G`, with a digest of mkfs arguments.

    `size` in bytes is rounded up. Raises InvalidValue for one that the file system cannot have.
    """
    size = volume_size(size)
    kind.require_size(size)
    name = f"@base/{kind.name}/{format_exact(size)}"
    if mkfs_arguments:
        import hashlib

        name += "/" + hashlib.sha256("\0".join(mkfs_arguments).encode()).hexdigest()[:12]
    return NewVolume(name, Kind.BASE, size, kind.name, None)
