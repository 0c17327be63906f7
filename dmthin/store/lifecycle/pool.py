"""The pool as an administrator sees it: status, growth, trim, up and down, the end."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dmthin.errors import DmthinError, KernelError, NoMetadataSpace, NotFound
from dmthin.kernel import block
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.pool import metadata
from dmthin.pool.backing import Backing, BlockDevice
from dmthin.pool.guard import Guard
from dmthin.pool.metadata import Usage
from dmthin.pool.spacemap import SpaceMap
from dmthin.steps import step
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle import auto_extend as autoextend
from dmthin.store.lifecycle.pool_lifecycle import PoolLifecycle
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord
from dmthin.store.volumes.change import ActivePool
from dmthin.units import METADATA_BLOCK, MIB

_PAUSE_SECONDS = 0.1
"""How long trim holds up the pool's I/O at a time, roughly."""

_PUNCH_AT_LEAST = MIB
"""Bytes of a free run that are worth a hole of their own."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    """The pool's state, all sizes in bytes. `status` is None, and the sizes of use are 0, while it is not active.

    `metadata_reserve` is what the kernel keeps for its own commits and counts as used in its status line; here it is
    in neither `metadata_used` nor `metadata_available`. The host's figures are None for block devices. `data_available`
    is what can really still be written: the least of the pool's and the host file system's free space.
    """

    name: str
    active: bool
    status: PoolStatus | None
    block_size: int
    data: str
    metadata: str
    data_size: int
    data_used: int
    data_available: int
    data_allocated: int | None
    metadata_size: int
    metadata_used: int
    metadata_reserve: int
    metadata_available: int
    metadata_allocated: int | None
    host_free: int | None
    volumes: int
    provisioned: int

    @property
    def mode(self) -> str:
        """The pool's mode as the kernel calls it, `inactive` while it is down."""
        return self.status.mode.value if self.status else "inactive"


class Pool:
    """The pool of one store."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        locks: Locks,
        keeper: PoolLifecycle,
        change: Callable[[], AbstractContextManager[ActivePool]],
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._locks = locks
        self._keeper = keeper
        self._change = change

    def status(self) -> PoolReport:
        """How the pool is now. Asks only the kernel and the ledger, changes nothing, waits for nobody."""
        record = self._ledger.store()
        return self._report(record, self._status(record))

    def activate(self) -> None:
        """Bring the pool up, as any change does."""
        with self._change():
            pass

    def deactivate(self) -> None:
        """Take the pool and all its devices down, whatever state it is in. Raises InUse while a volume is in use."""
        if self.status().active:
            with suppress(DmthinError):  # a pool that cannot be used can still be taken down
                self.activate()
        with self._locks.own_pool():
            self._keeper.deactivate(self._ledger.store())

    def extend(self, *, data_size: int | None = None, metadata_size: int | None = None) -> PoolReport:
        """Grow the pool's data, metadata or both to a size in bytes, while it is in use; I/O pauses for a moment.

        For a block device that has grown, no size means all of it. Raises InvalidValue: it never shrinks, and has room
        only within the regions of a disk that was divided.
        """
        with suppress(NoMetadataSpace):  # what this may be about to mend
            self.activate()
        with self._locks.own_pool():
            record = self._keeper.require_growth(self._ledger.store(), data_size, metadata_size)
            if record.data_target is not None or record.metadata_target is not None:
                self._keeper.grow(record)
        return self.status()

    def extend_if_due(self) -> bool:
        """Extend the pool if dm.thinp_autoextend_threshold says so, as far as its disk has room; whether it did.

        For a daemon to call every few seconds: a pool without data space fails its writers after a minute. An active
        pool only, and nothing but a few questions where nothing is due. Raises what `extend` does.
        """
        record = self._ledger.store()
        policy = autoextend.policy_of(record)
        status = self._status(record) if policy else None
        if policy is None or status is None or not any(autoextend.sizes_due(policy, self._layout, record, status)):
            return False
        with suppress(NoMetadataSpace):  # what this is about to mend
            self.activate()
        with self._locks.own_pool():
            record = self._ledger.store()
            data_size, metadata_size = autoextend.sizes_due(policy, self._layout, record, self._keeper.status(record))
            if not data_size and not metadata_size:
                return False  # another was faster
            self._keeper.grow(self._keeper.require_growth(record, data_size, metadata_size))
        return True

    def set_options(self, texts: Iterable[str]) -> None:
        """Keep these storage options in the store instead of those that it has. The caller has checked them."""
        with self._locks.own_pool(), self._ledger.transaction("options"):
            self._ledger.save_store(replace(self._ledger.store(), options=tuple(texts)))

    def trim(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Give every free block of the pool back to what lies below it; returns the bytes that the host got back.

        The pool's I/O pauses for about a tenth of a second at a time, in which nothing can be allocated, so that what
        the space map calls free is free. `progress` hears bitmaps done and in all. For a block device the blocks are
        discarded and 0 is returned, since nobody can tell.
        """
        with self._change() as pool:
            record = pool.record
        backing = self._data_backing(record)
        before = backing.allocated() if backing.is_file else 0
        node = self._keeper.metadata_node(record)
        done, total = 0, 1
        with SpaceMap(node) as space_map:
            while done < total:
                with self._locks.own_pool(), Guard(record.pool_name):
                    done, total = _trim_some(space_map, backing, record.block_size, done)
                if progress:
                    progress(done, total)
        return max(0, before - backing.allocated()) if backing.is_file else 0

    def usage(self) -> dict[int, Usage]:
        """Exclusive and shared blocks of every volume by device id, from the pool's metadata."""
        with self._held_metadata() as node:
            return metadata.usage(node)

    def added(self, before: int, after: int) -> int:
        """The bytes of the volume with device id `after` that its origin `before` has not."""
        with self._held_metadata() as node:
            return metadata.added_blocks(node, before, after) * self._ledger.store().block_size

    def destroy(self) -> None:
        """Remove the pool, every volume and the store's files. Raises InUse while a volume is mounted or open."""
        with self._locks.own_pool():
            self._keeper.destroy(self._ledger.store())
            block.remove_file(self._layout.lock)
        block.remove_folders(self._layout.root)

    @contextmanager
    def _held_metadata(self) -> Iterator[Path]:
        """The metadata's device, with a snapshot of the metadata on it; no lock of the pool is held meanwhile."""
        with self._locks.metadata_snapshot():
            with self._change() as pool:
                node = self._keeper.metadata_node(pool.record)
                pool.thin.hold_metadata()
            try:
                yield node
            finally:
                with self._locks.share_pool():
                    if pool.thin.is_active():
                        pool.thin.release_metadata()

    def _status(self, record: StoreRecord) -> PoolStatus | None:
        """The kernel's line, None while the pool is down."""
        pool = self._keeper.pool(record)
        try:
            return pool.status() if pool.is_active() else None
        except NotFound:
            return None

    def _data_backing(self, record: StoreRecord) -> Backing:
        if not record.pool:
            return self._layout.data(record)
        return BlockDevice(block.node_of(self._keeper.pool(record).table().data_device))

    def _report(self, record: StoreRecord, status: PoolStatus | None) -> PoolReport:
        volumes = self._ledger.volumes()
        data, meta = self._layout.data(record), self._layout.metadata(record)
        is_file = bool(record.data) and data.is_file
        host_free = block.free_space(self._layout.root) if is_file else None
        now = status or PoolStatus(PoolMode.FAIL)
        data_size = now.data_total_blocks * record.block_size
        data_used = now.data_used_blocks * record.block_size
        data_free = data_size - data_used
        return PoolReport(
            name=record.pool_name,
            active=status is not None,
            status=status,
            block_size=record.block_size,
            data=str(data.path) if record.data else "",
            metadata=str(meta.path) if record.metadata else "",
            data_size=data_size,
            data_used=data_used,
            data_available=data_free if host_free is None else min(data_free, host_free),
            data_allocated=data.allocated() if is_file and data.path.exists() else None,
            metadata_size=now.metadata_total_blocks * METADATA_BLOCK,
            metadata_used=now.metadata_net_used_blocks * METADATA_BLOCK,
            metadata_reserve=now.metadata_reserve_blocks * METADATA_BLOCK,
            metadata_available=(now.metadata_total_blocks - now.metadata_used_blocks) * METADATA_BLOCK,
            metadata_allocated=meta.allocated() if record.metadata and meta.is_file and meta.path.exists() else None,
            host_free=host_free,
            volumes=len(volumes),
            provisioned=sum(volume.size for volume in volumes),
        )


def _trim_some(space_map: SpaceMap, backing: Backing, block_size: int, done: int) -> tuple[int, int]:
    """Free the holes of some bitmaps from number `done` on, until the time is up; bitmaps done and in all."""
    deadline = time.monotonic() + _PAUSE_SECONDS
    index = space_map.index()
    total = len(index.bitmaps)
    release = block.punch if backing.is_file else block.discard
    with block.opened(backing.path if backing.is_file else backing.node(), os.O_RDWR) as fd:
        while done < total:
            for first, count in space_map.free_ranges(index, done, _PUNCH_AT_LEAST // block_size):
                try:
                    with step("free", count, "blocks at", first):
                        release(fd, first * block_size, count * block_size)
                except KernelError as error:
                    if error.errno == errno.EOPNOTSUPP:
                        raise KernelError(
                            f"{backing.path} takes no discards", errno=errno.EOPNOTSUPP, hint="there is nothing to trim"
                        ) from None
                    raise
            done += 1
            if time.monotonic() > deadline:
                break
    return done, total
