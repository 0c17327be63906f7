"""What a snapshot takes that its parent does not: bytes of the pool, and inodes.

containerd asks for each active snapshot every ten seconds. Reading all mappings takes a process, so what it tells of
every volume serves for a while, and what a volume has mapped since is added. A committed snapshot is counted once.
"""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dmthin.errors import NotFound
from dmthin.kernel import mount
from dmthin.kernel.thin import ThinStatus
from dmthin.pool import filesystem
from dmthin.pool.metadata import Usage
from dmthin.store.model import Snapshot, SnapshotKind
from dmthin.store.store import Store

_LEAST_SECONDS = 10.0
_PATIENCE = 20
"""All mappings are read no more often than this many times as long as reading them takes."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What every volume mapped at a time (monotonic seconds), in blocks by device id; and how long that took."""

    at: float
    took: float
    blocks: dict[int, Usage]


class UsageCounter:
    """The use of one store's snapshots. Threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._block_size = store.ledger.store().block_size
        self._counting = threading.Lock()
        self._counted = _Counted(float("-inf"), 0, {})

    def of(self, snapshot: Snapshot) -> tuple[int, int]:
        """Bytes and inodes. Raises NotFound if it is removed meanwhile, Unavailable, NeedsRepair."""
        if snapshot.kind is SnapshotKind.COMMITTED:
            size, inodes = self._committed(snapshot)
        else:
            size, inodes = self._exclusive(snapshot), self._inodes(snapshot)
        below = self._store.keyed.get(snapshot.snapshotter, snapshot.parent) if snapshot.parent else None
        return size, max(0, inodes - (self._committed(below)[1] if below else 0))

    def _committed(self, snapshot: Snapshot) -> tuple[int, int]:
        """What a committed snapshot adds to its parent, and all its inodes."""
        if snapshot.bytes is not None and snapshot.inodes is not None:
            return snapshot.bytes, snapshot.inodes
        volume = snapshot.volume
        inodes = self._inodes(snapshot)
        if volume.parent is None:
            size = self._exclusive(snapshot)
        else:
            size = self._store.pool.added(volume.parent, volume.device_id)
        # Whoever asks must not wait for those who write the ledger.
        self._store.snapshots.behind.later(0, partial(self._store.keyed.count, snapshot, size, inodes))
        return size, inodes

    def _exclusive(self, snapshot: Snapshot) -> int:
        """The bytes that only this volume maps: as of the last count, and what it has mapped since."""
        device_id = snapshot.volume.device_id
        then = self._count(device_id).blocks.get(device_id, Usage(0, 0))
        blocks = then.exclusive_blocks
        info = self._store.volumes.info(snapshot.volume)
        if info is not None:
            with suppress(NotFound):
                mapped = ThinStatus.parse(self._store.dm.status(info.name)).mapped
                if mapped is not None:
                    blocks += mapped // self._block_size - then.exclusive_blocks - then.shared_blocks
        return max(0, blocks) * self._block_size

    def _count(self, device_id: int) -> _Counted:
        """A count that is not too old, and has this volume in it."""
        with self._counting:
            counted = self._counted
            started = time.monotonic()
            lasts = max(_LEAST_SECONDS, _PATIENCE * counted.took)
            # What is newer than the count shares its parent's blocks, which nothing else tells apart.
            if device_id not in counted.blocks or started - counted.at > lasts:
                blocks = self._store.pool.usage()
                counted = self._counted = _Counted(started, time.monotonic() - started, blocks)
            return counted

    def _inodes(self, snapshot: Snapshot) -> int:
        """The inodes in use: of a mounted file system from the kernel, else from its superblock."""
        kind = filesystem.by_name(snapshot.volume.file_system)
        info = self._store.volumes.info(snapshot.volume)
        if info is not None and (mounts := mount.of_device(info.dev)):
            figures = os.statvfs(mounts[0].target)
            return max(0, figures.f_files - figures.f_ffree - kind.own_inodes)
        with self._store.volumes.held_open(snapshot.volume) as found:
            inodes = kind.inodes(Path(found.node))
        if info is None:
            self._store.snapshots.let_linger(snapshot.volume)
        return inodes
