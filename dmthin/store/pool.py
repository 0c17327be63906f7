"""The pool of a store as an administrator sees it: status, extension, trim, activation, removal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dmthin.errors import DmthinError, NoMetadataSpace, NotFound
from dmthin.kernel import block
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.pool import metadata
from dmthin.pool.backing import Backing, BlockDevice
from dmthin.pool.metadata import Usage
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle import auto_extend
from dmthin.store.lifecycle.lifecycle import PoolLifecycle
from dmthin.store.lifecycle.trim import trim
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.lock_waits import unlimited
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord
from dmthin.store.volumes.recovery import Recovery
from dmthin.units import METADATA_BLOCK


@dataclass(frozen=True, slots=True)
class PoolReport:
    """The pool's state, all sizes in bytes. While it is not active, `status` is None and the sizes of use are 0.

    `metadata_reserve` is what the kernel keeps for its own commits and counts as used in its status line; here it is
    in neither `metadata_used` nor `metadata_available`. The host's figures are None for block devices. `data_available`
    is what can still be written: the smaller of the free space of the pool and of the host's file system.
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
        """The pool's mode in the kernel's words, `inactive` while it is down."""
        return self.status.mode.value if self.status else "inactive"


class Pool:
    """The pool of one store."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        locks: Locks,
        lifecycle: PoolLifecycle,
        recovery: Recovery,
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._locks = locks
        self._lifecycle = lifecycle
        self._recovery = recovery

    def status(self) -> PoolReport:
        """Return the pool's state. Only asks the kernel and the ledger: takes no lock and changes nothing."""
        record = self._ledger.store()
        return self._report(record, self._status(record))

    def activate(self) -> None:
        """Bring the pool up and recover interrupted operations, as any change does. Raises what `Gate.hold` does."""
        with self._recovery.transaction():
            pass

    def deactivate(self) -> None:
        """Take the pool and all its devices down, in whatever state. Raises InUse while a volume is in use."""
        if self.status().active:
            with suppress(DmthinError):  # a pool that cannot be used can still be taken down
                self.activate()
        with self._locks.own_pool():
            self._lifecycle.activation.deactivate(self._ledger.store())

    def extend(self, *, data_size: int | None = None, metadata_size: int | None = None) -> PoolReport:
        """Extend the pool's data, metadata or both to a size in bytes, online; return its state. I/O pauses briefly.

        Without a size, a block device that has grown is used in full. Raises InvalidValue (a smaller size, no room on
        the device or within the regions of a divided disk), NoDataSpace, NeedsRepair.
        """
        with suppress(NoMetadataSpace):  # the extension may be what mends this
            self.activate()
        with self._locks.own_pool():
            planned = self.plan_extend(data_size, metadata_size)
            if planned.data_target is not None or planned.metadata_target is not None:
                self._lifecycle.growth.carry_out(planned)
        return self.status()

    def plan_extend(self, data_size: int | None = None, metadata_size: int | None = None) -> StoreRecord:
        """Return the store's record with the targets of an extension, checked. Raises what `extend` does."""
        return self._lifecycle.growth.plan(self._ledger.store(), data_size, metadata_size)

    def extend_if_due(self) -> bool:
        """Extend an active pool if dm.thinp_autoextend_threshold asks for it; return whether that was so.

        A daemon calls it every few seconds, since a pool without data space fails its writers after a minute. Where
        nothing is due, it only reads the ledger and the pool's status. Raises what `extend` does.
        """
        record = self._ledger.store()
        policy = auto_extend.policy_of(record)
        status = self._status(record) if policy else None
        if policy is None or status is None or not any(auto_extend.sizes_due(policy, self._layout, record, status)):
            return False
        with suppress(NoMetadataSpace):  # the extension is what mends this
            self.activate()
        with self._locks.own_pool():
            record = self._ledger.store()
            status = self._lifecycle.activation.pool(record).status()
            data_size, metadata_size = auto_extend.sizes_due(policy, self._layout, record, status)
            if not data_size and not metadata_size:
                return False  # another process was faster
            self._lifecycle.growth.carry_out(self.plan_extend(data_size, metadata_size))
        return True

    def set_options(self, texts: Iterable[str]) -> None:
        """Replace the storage options that the store keeps. The caller has checked them."""
        with self._locks.own_pool(), self._ledger.transaction("options"):
            self._ledger.save_store(replace(self._ledger.store(), options=tuple(texts)))

    def trim(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Give every free block of the pool back to what lies below it; return the bytes that the host reclaimed.

        `progress` is called with the bitmaps done and in all. For a block device the blocks are discarded and 0 is
        returned, since it does not tell. Raises KernelError for a device that takes no discards.
        """
        with self._recovery.transaction() as pool:
            record = pool.record
        backing = self._data_backing(record)
        before = backing.allocated() if backing.is_file else 0
        trim(record, backing, self._lifecycle.activation.metadata_node(record), self._locks, progress)
        return max(0, before - backing.allocated()) if backing.is_file else 0

    def usage(self) -> dict[int, Usage]:
        """Return exclusive and shared blocks of every volume by device id, read from the pool's metadata."""
        with self._held_metadata() as node:
            return metadata.usage(node)

    def added(self, before: int, after: int) -> int:
        """Return the bytes that the volume with device id `after` maps and its origin `before` does not."""
        with self._held_metadata() as node:
            return metadata.added_blocks(node, before, after) * self._ledger.store().block_size

    def destroy(self) -> None:
        """Remove the pool, every volume and the store's files. Raises InUse while a volume is mounted or open."""
        with self._locks.own_pool():
            self._lifecycle.removal.destroy(self._ledger.store())
            block.remove_file(self._layout.lock)
        block.remove_folders(self._layout.root)

    @contextmanager
    def _held_metadata(self) -> Iterator[Path]:
        """Hold a metadata snapshot of the pool, without the pool lock; the value is the metadata's device."""
        with self._locks.metadata_snapshot():
            with self._recovery.transaction() as pool:
                node = self._lifecycle.activation.metadata_node(pool.record)
                pool.thin.hold_metadata()
            try:
                yield node
            finally:
                with unlimited(), self._locks.share_pool():
                    if pool.thin.is_active():
                        pool.thin.release_metadata()

    def _status(self, record: StoreRecord) -> PoolStatus | None:
        """Return the kernel's status line, None while the pool is down."""
        pool = self._lifecycle.activation.pool(record)
        try:
            return pool.status() if pool.is_active() else None
        except NotFound:
            return None

    def _data_backing(self, record: StoreRecord) -> Backing:
        if not record.pool:
            return self._layout.data(record)
        return BlockDevice(block.node_of(self._lifecycle.activation.pool(record).table().data_device))

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
