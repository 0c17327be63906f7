"""The usage of snapshots: bytes of the pool, and inodes, that are not their parent's.

containerd requests the usage of each active snapshot every ten seconds. Reading the mappings of all volumes takes a
process (thin_ls), so its result, a sample, is used for some time, and the blocks that a volume has mapped since then
are added. A snapshot that is newer than the sample shared all mappings of its parent when it was created. A committed
snapshot does not change, and is counted once.
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

_MIN_PERIOD_SECONDS = 10.0
_PERIOD_FACTOR = 20
"""The period of a sample is at least this many times as long as it took to read: 5 % of the time is spent on it."""

_MAX_PERIODS = 6
"""A sample older than its period is still used while the next one is read in the background, up to so many periods."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """The mappings of all volumes at the time `at` (monotonic, seconds), read in `took` seconds.

    `blocks` is by device id. `immutable` are the ids of ready bases and images, whose mappings do not change.
    """

    at: float
    took: float
    blocks: dict[int, Usage]
    immutable: frozenset[int]

    @property
    def age(self) -> float:
        """The age of the sample in periods."""
        return (time.monotonic() - self.at) / max(_MIN_PERIOD_SECONDS, _PERIOD_FACTOR * self.took)

    def of(self, volume: Volume, *, is_active: bool) -> Usage | None:
        """Return what a volume mapped; None if it cannot be derived from this sample.

        For a newer volume, return what it shared with its parent when it was created. That is sufficient only if the
        volume is active, so that the kernel reports the number of blocks that it maps now.
        """
        if (found := self.blocks.get(volume.device_id)) is not None:
            return found
        if is_active and volume.parent in self.immutable and volume.parent in self.blocks:
            origin = self.blocks[volume.parent]
            return Usage(0, origin.exclusive_blocks + origin.shared_blocks)
        return None


class UsageCounter:
    """Computes the usage of one store's snapshots. Thread-safe."""

    def __init__(self, store: Store, background: Queue) -> None:
        """`background` reads samples. It should be a queue of its own, since that can take long."""
        self._store = store
        self._background = background
        self._block_size = store.ledger.store().block_size
        self._lock = threading.Lock()
        self._sample = _Sample(float("-inf"), 0, {}, frozenset())
        self._is_refreshing = False

    def of(self, snapshot: Snapshot) -> tuple[int, int]:
        """Return the bytes and inodes of a snapshot that are not its parent's.

        Raise NotFound (it was removed meanwhile), Unavailable or NeedsRepair.
        """
        if snapshot.kind is SnapshotKind.COMMITTED:
            size, inodes = self._committed(snapshot)
        else:
            size, inodes = self._exclusive(snapshot), self._inodes(snapshot)
        below = self._store.snapshots.get(snapshot.snapshotter, snapshot.parent) if snapshot.parent else None
        return size, max(0, inodes - (self._committed(below)[1] if below else 0))

    def _committed(self, snapshot: Snapshot) -> tuple[int, int]:
        """Return the bytes that a committed snapshot adds to its parent, and all its inodes."""
        if snapshot.bytes is not None and snapshot.inodes is not None:
            return snapshot.bytes, snapshot.inodes
        volume = snapshot.volume
        inodes = self._inodes(snapshot)
        if volume.parent is None:
            alone = self._store.pool.usage().get(volume.device_id, Usage(0, 0))
            size = alone.exclusive_blocks * self._block_size
        else:
            size = self._store.pool.added(volume.parent, volume.device_id)
        # Recorded in the background: Usage must not wait for another writer of the ledger.
        self._store.background.work.later(0, partial(self._store.snapshots.save_usage, snapshot, size, inodes))
        return size, inodes

    def _exclusive(self, snapshot: Snapshot) -> int:
        """Return the bytes that only this volume maps: those in the sample, and those mapped since then."""
        mapped = self._mapped(snapshot.volume)
        sampled = self._sampled(snapshot.volume, is_active=mapped is not None)
        blocks = sampled.exclusive_blocks if mapped is None else mapped - sampled.shared_blocks
        return max(0, blocks) * self._block_size

    def _mapped(self, volume: Volume) -> int | None:
        """Return the number of blocks that a volume maps now; None if it is inactive or the kernel does not know."""
        if (info := self._store.volumes.info(volume)) is None:
            return None
        try:
            mapped = ThinStatus.parse(self._store.dm.status(info.name)).mapped
        except NotFound:  # its device was removed meanwhile
            return None
        return None if mapped is None else mapped // self._block_size

    def _sampled(self, volume: Volume, *, is_active: bool) -> Usage:
        """Return what a volume mapped, according to a sample that is recent enough; read one if there is none."""
        refresh = False
        with self._lock:
            found = self._sample.of(volume, is_active=is_active)
            if found is None or self._sample.age > _MAX_PERIODS:
                self._sample = sample = self._read()
                found = sample.blocks.get(volume.device_id, Usage(0, 0))
            elif self._sample.age > 1 and not self._is_refreshing:
                refresh = self._is_refreshing = True
        if refresh:
            self._background.later(0, self._refresh)
        return found

    def _read(self) -> _Sample:
        started = time.monotonic()
        # The ledger comes first: a volume is immutable here only if it was so before its mappings are read.
        volumes = self._store.ledger.volumes()
        immutable = frozenset(
            volume.device_id for volume in volumes if volume.state is State.READY and volume.kind is not Kind.CONTAINER
        )
        blocks = self._store.pool.usage()
        return _Sample(started, time.monotonic() - started, blocks, immutable)

    def _refresh(self) -> None:
        """Read a new sample while the current one stays in use."""
        try:
            sample = self._read()
            with self._lock:
                if sample.at > self._sample.at:
                    self._sample = sample
        finally:
            self._is_refreshing = False

    def _inodes(self, snapshot: Snapshot) -> int:
        """Return the number of inodes in use: from statfs(2) if the volume is mounted, else from its superblock."""
        kind = filesystem.by_name(snapshot.volume.file_system)
        info = self._store.volumes.info(snapshot.volume)
        if info is not None and (mounts := mount.of_device(info.dev)):
            statistics = os.statvfs(mounts[0].target)
            return max(0, statistics.f_files - statistics.f_ffree - kind.own_inodes)
        with self._store.volumes.open(snapshot.volume) as device:
            inodes = kind.inodes(Path(device.info.node))
        if info is None:
            self._store.cleanup.deactivate_later(snapshot.volume)
        return inodes
