"""Bringing a store's pool up and down, and growing it. Every function here runs with the pool's lock held alone.

Each first writes what it is about to do into the store's record, so that whoever comes next can finish it or undo it.
"""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue, NeedsRepair, NotFound, Unavailable
from dmthin.kernel import block, holders, mount
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.kernel.thin import MAX_METADATA_SIZE, PoolMode, PoolStatus, PoolTable
from dmthin.pool import metadata, spacemap
from dmthin.pool.backing import Backing
from dmthin.pool.guard import resume
from dmthin.pool.thinpool import ThinPool
from dmthin.store.config.layout import Layout
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import StoreRecord, StoreState
from dmthin.units import METADATA_BLOCK, MIB, format_exact, round_up

logger = logging.getLogger(__name__)

_LOW_WATER_BLOCKS = 32768
"""Free data blocks at which the kernel raises an event, at most a tenth of the pool: Docker's figure, 2G of 64K."""

_SPARE_METADATA_BLOCKS = 64
"""Metadata blocks that stay free after a growth, for the tree above the bitmaps and the commit itself."""


class PoolLifecycle:
    """The life of one store's pool. `dm` serves the quick requests, `builder` makes and unmakes the pool."""

    def __init__(self, layout: Layout, ledger: Ledger, dm: DeviceMapper, builder: DeviceMapper) -> None:
        self._layout = layout
        self._ledger = ledger
        self._dm = dm
        self._builder = builder

    def pool(self, record: StoreRecord) -> ThinPool:
        """The pool that the record names, active or not."""
        return ThinPool(record.pool_name, self._layout.uuid(record, "pool"), self._dm, self._builder)

    def is_in_order(self, record: StoreRecord, info: DeviceInfo | None) -> bool:
        """Whether there is nothing to finish, undo or activate. One comparison of what is known: no more."""
        return (
            record.state is StoreState.READY
            and not record.clean
            and record.data_target is None
            and record.metadata_target is None
            and info is not None
            and info.live_table
            and not info.suspended
        )

    def recover(self) -> StoreRecord:
        """Finish or undo what a process that died has left, and bring the pool up. Raises NotFound if nothing is left.

        This is the first step of every change that finds the pool not in order, a reboot included.
        """
        record = self._ledger.store()
        self._ledger.harden()
        if record.state is not StoreState.READY:
            self.demolish(record)
            raise NotFound(f"{self._layout.root} is no store any more", hint="make one with: dmthin pool create")
        record = self._activate(record)
        if record.data_target is not None or record.metadata_target is not None:
            record = self._finish_growth(record)
        return record

    def require_own_devices(self, record: StoreRecord) -> None:
        """Raise AlreadyExists for an active pool on other devices: a store that was copied has the original's names."""
        pool = self.pool(record)
        if record.pool or not pool.is_active():
            return
        table = pool.table()
        data, meta = self._layout.data(record), self._layout.metadata(record)
        if not (data.is_at(table.data_device) and meta.is_at(table.metadata_device)):
            held = block.describe(table.data_device)
            raise AlreadyExists(
                f"the pool {pool.name} is held by another store, on {held}",
                hint="use that store, or take its pool down",
            )

    def build(self, record: StoreRecord) -> StoreRecord:
        """Make a pool from nothing for a record that is being made: files, loops or parts of a disk, pool device."""
        if record.pool:
            return self._activate(record)
        data, meta = self._layout.data(record), self._layout.metadata(record)
        for backing, length in ((data, record.data_target), (meta, record.metadata_target)):
            if length is not None:
                backing.make(length)
        if not meta.is_file:
            block.wipe_first_block(meta.path)
        size = data.size() // record.block_size * record.block_size
        record = replace(record, data_size=size, metadata_size=meta.size(), data_target=None, metadata_target=None)
        return self._activate(record)

    def demolish(self, record: StoreRecord) -> None:
        """Take everything of a store away: devices, loops, files, and last the record itself. Safe to repeat.

        A block device stays, with its first metadata block zeroed; a pool that was there before stays, emptied.
        """
        pool = self.pool(record)
        self.require_own_devices(record)
        self.deactivate_volumes(record)
        self._unmount_all()
        if record.pool:
            self._empty_foreign_pool(pool)
        else:
            pool.deactivate()
            data, meta = self._layout.data(record), self._layout.metadata(record)
            for backing in (data, meta):
                backing.detach()
            if not meta.is_file and spacemap.is_metadata(meta.path):
                block.wipe_first_block(meta.path)
            for backing in (data, meta):
                if backing.is_file:
                    block.remove_file(backing.path)
        for folder in (self._layout.mounts, self._layout.work):
            block.remove_folders(folder)
        self._ledger.remove()

    def destroy(self, record: StoreRecord) -> None:
        """End a store for good. Raises InUse while a volume is in use; nothing has gone then."""
        if record.pool:
            self._foreign(self.pool(record))
        self.require_own_devices(record)
        self.deactivate_volumes(record)
        self.demolish(self._save(replace(record, state=StoreState.DESTROYING), "destroy"))

    def deactivate(self, record: StoreRecord) -> StoreRecord:
        """Take the pool down, whatever state it is in, and release its loops. Raises InUse while a volume is in use.

        Safe to repeat. A pool that was down already, and not cleanly, is still to be checked when it comes up.
        """
        pool = self.pool(record)
        was_up = pool.is_active()
        self.require_own_devices(record)
        self.deactivate_volumes(record)
        self._unmount_all()
        self._bring_down(pool, record)
        return self._save(replace(record, clean=True), "pool down") if was_up else record

    def deactivate_volumes(self, record: StoreRecord) -> None:
        """Remove the devices of all volumes; none while one is open: InUse then names that and its users."""
        active = [device.name for device in self._dm.devices() if record.device_id_of(device.name) is not None]
        for name in active:
            with suppress(NotFound):
                info = self._dm.info(name)
                if info.open_count:
                    raise self._busy(record, info)
        for name in active:
            with suppress(NotFound):
                self._dm.remove(name)

    def require_growth(self, record: StoreRecord, data_size: int | None, metadata_size: int | None) -> StoreRecord:
        """The record with the targets of an extension, checked: nothing shrinks, devices are large enough.

        Raises InvalidValue, NeedsRepair (the kernel grows no pool that needs a check).
        """
        if record.pool:
            raise InvalidValue(
                f"the pool {record.pool} was made outside of dmthin", hint="extend it with the tool that made it"
            )
        pool = self.pool(record)
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

    def grow(self, record: StoreRecord) -> StoreRecord:
        """Extend the pool to the targets of its record, which are durable first."""
        return self._finish_growth(self._save(record, "pool grow"))

    def status(self, record: StoreRecord) -> PoolStatus:
        """The kernel's own line."""
        return self.pool(record).status()

    def metadata_node(self, record: StoreRecord) -> Path:
        """The device that holds the live pool's metadata."""
        return block.node_of(self.pool(record).table().metadata_device)

    def _activate(self, record: StoreRecord) -> StoreRecord:
        pool = self.pool(record)
        was_up = pool.is_active()
        info = self._foreign(pool) if record.pool else self._bring_up(pool, record)
        if info.suspended:
            resume(self._dm, pool.name)
        try:
            record = self._move_generation(pool, record)
        except BaseException:
            if not was_up:
                self._bring_down(pool, record)
            raise
        self._layout.mounts.mkdir(mode=0o700, exist_ok=True)
        mount.ensure_shared(self._layout.mounts)
        return record

    def _bring_up(self, pool: ThinPool, record: StoreRecord) -> DeviceInfo:
        """The pool on its two devices; loops that this attached are released again if it fails."""
        backings = (self._layout.data(record), self._layout.metadata(record))
        info = pool.info()
        fresh = [backing for backing in backings if backing.attached_number() is None]
        if info is not None and info.live_table:
            self.require_own_devices(record)
            return info
        try:
            data, meta = (backing.attach() for backing in backings)
            if not record.clean and record.state is StoreState.READY:
                logger.info("the pool was not shut down cleanly: checking its metadata")
            if record.state is StoreState.READY and not spacemap.is_metadata(backings[1].node()):
                # The kernel would take it for new and format it.
                raise NeedsRepair(f"{backings[1].path} holds no thin-pool metadata", hint="is it the right device?")
            if record.state is StoreState.READY and not record.clean:
                metadata.check(backings[1].node())  # not the file, which need not take direct I/O
            return pool.activate(self._table(record, data, meta))
        except BaseException:
            for backing in fresh:
                with suppress(DmthinError):
                    backing.detach()
            raise

    def _bring_down(self, pool: ThinPool, record: StoreRecord) -> None:
        if record.pool:
            return
        pool.deactivate()
        self._layout.data(record).detach()
        self._layout.metadata(record).detach()

    def _table(self, record: StoreRecord, data: str, meta: str) -> PoolTable:
        return pool_table(record.data_size, data, meta, record.block_size)

    def _foreign(self, pool: ThinPool) -> DeviceInfo:
        info = pool.info()
        if info is None or not info.live_table:
            raise Unavailable(f"the pool {pool.name} is not active", hint="activate it with the tool that made it")
        return info

    def _move_generation(self, pool: ThinPool, record: StoreRecord) -> StoreRecord:
        """Let the pool's transaction id and the ledger move together, once in each activation.

        The ledger goes first and says last that the pool is up, so a pool that is one behind a ledger that does not
        say so is a process that died in between. Anything else is a ledger that was restored from an old copy, or
        another program's work on the pool.
        """
        status = pool.status()
        pool.require_usable(status)
        found = status.transaction_id
        if found not in ((record.generation - 1, record.generation) if record.clean else (record.generation,)):
            raise NeedsRepair(
                f"the pool {pool.name} is of generation {found}, the ledger of {record.generation}",
                hint="the ledger was restored from an old copy, or another program has changed the pool",
            )
        if not record.clean:
            return record
        pool.require_writable(status)
        if found == record.generation:
            record = self._save(replace(record, generation=found + 1), "next generation")
        pool.set_transaction_id(found, record.generation)
        return self._save(replace(record, clean=False), "pool up")

    def _finish_growth(self, record: StoreRecord) -> StoreRecord:
        pool = self.pool(record)
        data, meta = self._layout.data(record), self._layout.metadata(record)
        try:
            if record.data_target is not None:
                data.grow(record.data_target)
            if record.metadata_target is not None:
                meta.grow(record.metadata_target)
        except DmthinError:
            # Nothing has reached the pool yet. Left in the record, the targets would stop every later change here.
            self._save(replace(record, data_target=None, metadata_target=None), "pool not grown")
            raise
        live = pool.table()
        if record.metadata_target is not None:
            # In the ledger before it is in the pool, which never comes up again with less than it has had. And before
            # the data, by itself: the kernel would resize that before it has the room to map it.
            record = self._save(replace(record, metadata_size=record.metadata_target), "pool metadata size")
            pool.reload(live)
        if record.data_target is not None:
            record = self._save(replace(record, data_size=record.data_target), "pool size")
            pool.reload(self._table(record, live.data_device, live.metadata_device))
        return self._save(replace(record, data_target=None, metadata_target=None), "pool grown")

    def _empty_foreign_pool(self, pool: ThinPool) -> None:
        if not pool.is_active():
            return
        for volume in self._ledger.volumes():
            pool.delete(volume.device_id)
        transaction_id = pool.status().transaction_id
        if transaction_id:
            pool.set_transaction_id(transaction_id, 0)

    def _unmount_all(self) -> None:
        """Unmount what dmthin has mounted below the store, the shared folder of mounts last. Raises InUse."""
        for folder in (self._layout.work, self._layout.mounts):
            for entry in mount.under(folder):
                mount.unmount(Path(entry.target))

    def _busy(self, record: StoreRecord, info: DeviceInfo) -> InUse:
        number = record.device_id_of(info.name)
        volume = self._ledger.by_id(number) if number is not None else None
        title = volume.title if volume else f"device {info.name}"
        who = holders.describe(info.dev) or "something in the kernel"
        return InUse(f"the {title} is in use by {who}", hint="unmount it, or stop that, first")

    def _save(self, record: StoreRecord, name: str) -> StoreRecord:
        with self._ledger.transaction(name):
            self._ledger.save_store(record)
        return record


def pool_table(data_size: int, data: str, meta: str, block_size: int) -> PoolTable:
    """The table of a pool on two devices: as many whole blocks as there are in `data_size` bytes."""
    blocks = data_size // block_size
    return PoolTable(blocks * block_size, meta, data, block_size, min(_LOW_WATER_BLOCKS, blocks // 10))


def _require_room_for_bitmaps(status: PoolStatus, blocks: int, metadata_target: int | None) -> None:
    """Raise InvalidValue if the metadata has no room to say which of so many data blocks are free.

    A block of metadata tells of 16320; without them the kernel fails the growth half-way and the pool needs repair.
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
    """The bytes to grow to, in whole blocks; None if there is nothing to do. A grown block device is taken as it is.

    A file and a part of a disk grow only if that is asked for.
    """
    if wanted is None:
        available = now if backing.is_file else backing.size() // step * step
        return available if available > now else None
    if wanted < now:
        raise InvalidValue(
            f"the pool's {what} has {format_exact(now)} and cannot shrink to {format_exact(wanted)}",
            hint="a thin pool only grows",
        )
    backing.require_room(wanted)
    return wanted // step * step if wanted // step * step > now else None
