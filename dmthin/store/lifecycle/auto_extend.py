"""Automatic extension of a pool that has a disk for itself: Docker's dm.thinp_autoextend options."""

from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.pool.backing import Backing
from dmthin.store.config.direct_lvm import DirectLvm
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions, parse_pairs
from dmthin.store.state.model import StoreRecord
from dmthin.units import METADATA_BLOCK, round_up


def policy_of(record: StoreRecord) -> DirectLvm | None:
    """Return the store's options for automatic extension, None if it has none."""
    if not record.metadata_end:
        return None
    direct = StorageOptions.from_pairs(parse_pairs(record.options)).direct
    return direct if direct is not None and direct.extends else None


def sizes_due(
    policy: DirectLvm, layout: Layout, record: StoreRecord, status: PoolStatus
) -> tuple[int | None, int | None]:
    """Return the sizes in bytes that data and metadata are due to have; None for what has enough, or has no more room.

    Nothing is due for a pool that the kernel would not extend (failed, or in need of a check).
    """
    if status.mode is PoolMode.FAIL or status.needs_check:
        return None, None
    data_size = metadata_size = None
    if _is_full(policy, status.data_used_blocks, status.data_total_blocks):
        now = status.data_total_blocks * record.block_size
        data_size = _larger(policy, layout.data(record), now, record.block_size)
    metadata_room = status.metadata_total_blocks - status.metadata_reserve_blocks
    if _is_full(policy, status.metadata_net_used_blocks, metadata_room):
        now = status.metadata_total_blocks * METADATA_BLOCK
        metadata_size = _larger(policy, layout.metadata(record), now, METADATA_BLOCK)
    return data_size, metadata_size


def _is_full(policy: DirectLvm, used: int, room: int) -> bool:
    return used * 100 >= room * policy.threshold


def _larger(policy: DirectLvm, backing: Backing, now: int, step: int) -> int | None:
    """Return the size that follows `now` bytes, in whole steps; None at the end of the region."""
    wanted = round_up(now + max(now * policy.extend_percent // 100, step), step)
    limit = backing.limit()
    size = wanted if limit is None else min(wanted, limit // step * step)
    return size if size > now else None
