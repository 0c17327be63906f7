"""Golden bases: a freshly formatted volume for each (file system, size, mkfs arguments), made once."""

from contextlib import suppress

from dmthin.pool.filesystem import FileSystem
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import Kind, NewVolume, State, Volume
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact


class Bases:
    """The bases of one store. Their names begin with `@`, which no user's name does."""

    def __init__(self, ledger: Ledger, locks: Locks, volumes: Volumes) -> None:
        self._ledger = ledger
        self._locks = locks
        self._volumes = volumes

    def ensure(self, kind: FileSystem, size: int, mkfs_arguments: tuple[str, ...]) -> Volume:
        """The base of this description, made if it is not there. Call it inside `kept()`, and use it there."""
        kind.require_size(size)
        name = base_name(kind, size, mkfs_arguments)
        return self._ready(name) or self._make(name, kind, size, mkfs_arguments)

    def kept(self) -> Lock:
        """While this is held nobody else makes or removes a base; enough to take a snapshot of one."""
        return self._locks.base()

    def remove_unused(self) -> None:
        """Remove the bases that no volume descends from: the next import makes them again."""
        with self.kept():
            for volume in self._ledger.volumes():
                unused = volume.kind is Kind.BASE and volume.state is State.READY
                if unused and not self._ledger.children(volume.device_id):
                    self._volumes.remove(volume)

    def _ready(self, name: str) -> Volume | None:
        base = self._ledger.find(name)
        return base if base is not None and base.state is State.READY else None

    def _make(self, name: str, kind: FileSystem, size: int, mkfs_arguments: tuple[str, ...]) -> Volume:
        with self._volumes.making(NewVolume(name, Kind.BASE, size, kind.name, None), activate=True) as base:
            with self._volumes.held_open(base) as info:
                kind.make(info.node, mkfs_arguments)
            with self._volumes.mounted_for_work(base) as root, suppress(FileNotFoundError):
                # fsck makes it anew when it needs it; a container should not see it.
                (root / "lost+found").rmdir()
        return base.with_state(State.READY)


def base_name(kind: FileSystem, size: int, mkfs_arguments: tuple[str, ...]) -> str:
    """The name that stands for a description of a base: `@base/ext4/10G`, with a digest of mkfs arguments if any."""
    name = f"@base/{kind.name}/{format_exact(size)}"
    if mkfs_arguments:
        import hashlib

        name += "/" + hashlib.sha256("\0".join(mkfs_arguments).encode()).hexdigest()[:12]
    return name
