"""What a snapshot takes that its parent does not: bytes of the pool, and inodes.

containerd asks for each active snapshot every ten seconds. Reading all mappings takes a process, so what it tells of
every volume serves for a while, and what a volume has mapped since is added; a newer one shared then all that its
parent maps. A committed snapshot is counted once.
"""

import os
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dmthin.errors import NotFound
from dmthin.kernel import mount
from dmthin.kernel.thin import ThinStatus
from dmthin.pool import filesystem
from dmthin.pool.metadata import Usage
from dmthin.store.state.model import Kind, Snapshot, SnapshotKind, State, Volume
from dmthin.store.store import Store
from dmthin.store.volumes.background import Queue

_LEAST_SECONDS = 10.0
_PATIENCE = 20
"""All mappings are read no more often than this many times as long as reading them takes."""

_OLDEST = 6
"""A count that has served its time serves while the next is made behind the caller, up to so many times that time."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What every volume mapped at a time (monotonic seconds), in blocks by device id; and how long that took.

    `settled` are the volumes that others are made of: they were as they stay.
    """

    at: float
    took: float
    blocks: dict[int, Usage]
    settled: frozenset[int]

    @property
    def served(self) -> float:
        """Its age, as a share of the time that it serves."""
        return (time.monotonic() - self.at) / max(_LEAST_SECONDS, _PATIENCE * self.took)

    def of(self, volume: Volume, *, is_active: bool) -> Usage | None:
        """What a volume mapped; None if this count cannot tell.

        For a newer one it is what that shared when it was made, which is of use only if the kernel tells of the rest.
        """
        if (found := self.blocks.get(volume.device_id)) is not None:
            return found
        if is_active and volume.parent in self.settled and volume.parent in self.blocks:
            origin = self.blocks[volume.parent]
            return Usage(0, origin.exclusive_blocks + origin.shared_blocks)
        return None


class UsageCounter:
    """The use of one store's snapshots. Threads may share it."""

    def __init__(self, store: Store, behind: Queue) -> None:
        """`behind` counts behind the caller, and need not be quick."""
        self._store = store
        self._behind = behind
        self._block_size = store.ledger.store().block_size
        self._counting = threading.Lock()
        self._counted = _Counted(float("-inf"), 0, {}, frozenset())
        self._is_renewed = False

    def of(self, snapshot: Snapshot) -> tuple[int, int]:
        """Bytes and inodes. Raises NotFound if it is removed meanwhile, Unavailable, NeedsRepair."""
        if snapshot.kind is SnapshotKind.COMMITTED:
            size, inodes = self._committed(snapshot)
        else:
            size, inodes = self._exclusive(snapshot), self._inodes(snapshot)
        below = self._store.snapshots.get(snapshot.snapshotter, snapshot.parent) if snapshot.parent else None
        return size, max(0, inodes - (self._committed(below)[1] if below else 0))

    def _committed(self, snapshot: Snapshot) -> tuple[int, int]:
        """What a committed snapshot adds to its parent, and all its inodes."""
        if snapshot.bytes is not None and snapshot.inodes is not None:
            return snapshot.bytes, snapshot.inodes
        volume = snapshot.volume
        inodes = self._inodes(snapshot)
        if volume.parent is None:
            alone = self._store.pool.usage().get(volume.device_id, Usage(0, 0))
            size = alone.exclusive_blocks * self._block_size
        else:
            size = self._store.pool.added(volume.parent, volume.device_id)
        # Whoever asks must not wait for those who write the ledger.
        self._store.background.work.later(0, partial(self._store.snapshots.save_usage, snapshot, size, inodes))
        return size, inodes

    def _exclusive(self, snapshot: Snapshot) -> int:
        """The bytes that only this volume maps: as of the last count, and what it has mapped since."""
        mapped = self._mapped(snapshot.volume)
        then = self._then(snapshot.volume, is_active=mapped is not None)
        blocks = then.exclusive_blocks if mapped is None else mapped - then.shared_blocks
        return max(0, blocks) * self._block_size

    def _mapped(self, volume: Volume) -> int | None:
        """The blocks that a volume maps now; None while it is not active, or if the kernel does not know."""
        if (info := self._store.volumes.info(volume)) is None:
            return None
        try:
            mapped = ThinStatus.parse(self._store.dm.status(info.name)).mapped
        except NotFound:  # its device has gone just now
            return None
        return None if mapped is None else mapped // self._block_size

    def _then(self, volume: Volume, *, is_active: bool) -> Usage:
        """What a volume mapped at the time of a count that is not too old."""
        renew = False
        with self._counting:
            then = self._counted.of(volume, is_active=is_active)
            if then is None or self._counted.served > _OLDEST:
                self._counted = counted = self._count()
                then = counted.blocks.get(volume.device_id, Usage(0, 0))
            elif self._counted.served > 1 and not self._is_renewed:
                renew = self._is_renewed = True
        if renew:
            self._behind.later(0, self._renew)
        return then

    def _count(self) -> _Counted:
        started = time.monotonic()
        volumes = self._store.ledger.volumes()
        settled = frozenset(
            volume.device_id for volume in volumes if volume.state is State.READY and volume.kind is not Kind.CONTAINER
        )
        blocks = self._store.pool.usage()
        return _Counted(started, time.monotonic() - started, blocks, settled)

    def _renew(self) -> None:
        """Count again, while those who ask get what was counted before."""
        try:
            counted = self._count()
            with self._counting:
                if counted.at > self._counted.at:
                    self._counted = counted
        finally:
            self._is_renewed = False

    def _inodes(self, snapshot: Snapshot) -> int:
        """The inodes in use: of a mounted file system from the kernel, else from its superblock."""
        kind = filesystem.by_name(snapshot.volume.file_system)
        info = self._store.volumes.info(snapshot.volume)
        if info is not None and (mounts := mount.of_device(info.dev)):
            figures = os.statvfs(mounts[0].target)
            return max(0, figures.f_files - figures.f_ffree - kind.own_inodes)
        with self._store.volumes.open(snapshot.volume) as device:
            inodes = kind.inodes(Path(device.info.node))
        if info is None:
            self._store.cleanup.deactivate_later(snapshot.volume)
        return inodes
