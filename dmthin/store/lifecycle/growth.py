"""Extension of a pool's data and metadata, online. The caller holds the pool lock exclusively."""

from dataclasses import replace

from dmthin.errors import DmthinError, InvalidValue
from dmthin.kernel.thin import MAX_METADATA_SIZE, PoolMode, PoolStatus
from dmthin.pool import spacemap
from dmthin.pool.backing import Backing
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle.activation import PoolActivation, pool_table
from dmthin.store.state.model import StoreRecord
from dmthin.units import METADATA_BLOCK, MIB, format_exact, round_up

_SPARE_METADATA_BLOCKS = 64
"""Metadata blocks that stay free after a growth, for the tree above the bitmaps and the commit itself."""


class PoolGrowth:
    """Extends the pool of one store to sizes that its record names first."""

    def __init__(self, layout: Layout, activation: PoolActivation) -> None:
        self._layout = layout
        self._activation = activation

    def plan(self, record: StoreRecord, data_size: int | None, metadata_size: int | None) -> StoreRecord:
        """Return the record with the targets of a checked extension, in bytes. Nothing is written.

        Raises InvalidValue (a smaller size, a device without room, metadata too small for the data), NeedsRepair (the
        kernel extends no pool that needs a check).
        """
        if record.pool:
            raise InvalidValue(
                f"the pool {record.pool} was made outside of dmthin", hint="extend it with the tool that made it"
            )
        pool = self._activation.pool(record)
        status = pool.status()
        if status.mode is PoolMode.FAIL or status.needs_check:
            pool.require_writable(status)
        if metadata_size is not None and metadata_size > MAX_METADATA_SIZE:
            raise InvalidValue("the kernel uses no more than 15.9G of metadata", hint="give at most 15G")
        data, meta = self._layout.data(record), self._layout.metadata(record)
        data_now = status.data_total_blocks * record.block_size
        metadata_now = status.metadata_total_blocks * METADATA_BLOCK
        data_target = _target("data", data, data_now, data_size, record.block_size)
        metadata_target = _target("metadata", meta, metadata_now, metadata_size, METADATA_BLOCK)
        if data_target is not None:
            _require_room_for_bitmaps(status, data_target // record.block_size, metadata_target)
        return replace(record, data_target=data_target, metadata_target=metadata_target)

    def carry_out(self, planned: StoreRecord) -> StoreRecord:
        """Extend the pool to the targets of a planned record, which is committed first; return the record then."""
        return self.finish(self._activation.save(planned, "pool grow"))

    def finish(self, record: StoreRecord) -> StoreRecord:
        """Extend the pool to the targets of its committed record; return the record then. Safe to repeat."""
        save, pool = self._activation.save, self._activation.pool(record)
        data, meta = self._layout.data(record), self._layout.metadata(record)
        try:
            if record.data_target is not None:
                data.grow(record.data_target)
            if record.metadata_target is not None:
                meta.grow(record.metadata_target)
        except DmthinError:
            # Nothing has reached the pool yet. If the targets stayed in the record, every later change would fail here.
            save(replace(record, data_target=None, metadata_target=None), "pool not grown")
            raise
        live = pool.table()
        if record.metadata_target is not None:
            # The ledger goes first: a pool must never come up again with less metadata than it has had. Metadata goes
            # before data, by a reload of its own: the kernel would resize the data before it has room to map it.
            record = save(replace(record, metadata_size=record.metadata_target), "pool metadata size")
            pool.reload(live)
        if record.data_target is not None:
            record = save(replace(record, data_size=record.data_target), "pool size")
            pool.reload(pool_table(record.data_size, live.data_device, live.metadata_device, record.block_size))
        return save(replace(record, data_target=None, metadata_target=None), "pool grown")


def _require_room_for_bitmaps(status: PoolStatus, blocks: int, metadata_target: int | None) -> None:
    """Raise InvalidValue if the metadata has no room for the bitmaps of `blocks` data blocks.

    One block of metadata covers 16320 data blocks. Without that room the kernel fails the growth halfway, and the pool
    needs repair.
    """
    per_bitmap = spacemap.ENTRIES_PER_BITMAP
    bitmaps = -(-blocks // per_bitmap) - -(-status.data_total_blocks // per_bitmap)
    needed = bitmaps + bitmaps // 64 + _SPARE_METADATA_BLOCKS
    free = status.metadata_total_blocks - status.metadata_used_blocks
    if metadata_target is not None:
        free += metadata_target // METADATA_BLOCK - status.metadata_total_blocks
    if needed > free:
        raise InvalidValue(
            f"the pool's metadata has no room for that much data: {needed} blocks needed, {free} free",
            hint=f"extend it too: --metadata-size +{format_exact(round_up((needed - free) * METADATA_BLOCK, MIB))}",
        )


def _target(what: str, backing: Backing, now: int, wanted: int | None, step: int) -> int | None:
    """Return the bytes to grow to, rounded up to whole steps if there is room for that; None if there is nothing to do.

    Without a `wanted` size, a block device that has grown is used in full; a file and a part of a disk stay.
    Raises InvalidValue for a smaller size, or one for which the backing has no room.
    """
    if wanted is None:
        available = now if backing.is_file else backing.size() // step * step
        return available if available > now else None
    target = round_up(wanted, step)
    if target < now:
        raise InvalidValue(
            f"the pool's {what} has {format_exact(now)} and cannot shrink to {format_exact(wanted)}",
            hint="a thin pool only grows",
        )
    backing.require_room(wanted)
    if (limit := backing.limit()) is not None and target > limit:
        target = limit // step * step
    return target if target > now else None
