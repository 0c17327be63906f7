"""Activation and deactivation of a store's pool. The caller holds the pool lock exclusively.

Each step that changes the pool is recorded in the store's record first, so that the next process can finish or undo it.
"""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dmthin.errors import AlreadyExists, DmthinError, InUse, NeedsRepair, NotFound, Unavailable
from dmthin.kernel import block, holders, mount
from dmthin.kernel.devicemapper import DeviceBuilder, DeviceInfo, DeviceMapper
from dmthin.kernel.thin import PoolTable
from dmthin.pool import metadata, spacemap
from dmthin.pool.guard import resume
from dmthin.pool.thinpool import ThinPool
from dmthin.store.config.layout import Layout
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import StoreRecord, StoreState

logger = logging.getLogger(__name__)

_LOW_WATER_BLOCKS = 32768
"""Free data blocks at which the kernel raises an event, at most a tenth of the pool: Docker's figure, 2G of 64K."""


class PoolActivation:
    """Brings one store's pool up and down. `dm` serves frequent requests, `builder` creates and removes the pool."""

    def __init__(self, layout: Layout, ledger: Ledger, dm: DeviceMapper, builder: DeviceBuilder) -> None:
        self._layout = layout
        self._ledger = ledger
        self._dm = dm
        self._builder = builder

    def pool(self, record: StoreRecord) -> ThinPool:
        """Return the pool that the record names, active or not."""
        return ThinPool(record.pool_name, self._layout.uuid(record, "pool"), self._dm, self._builder)

    def metadata_node(self, record: StoreRecord) -> Path:
        """Return the device that holds the metadata of the active pool. Raises NotFound while it is down."""
        return block.node_of(self.pool(record).table().metadata_device)

    def is_in_order(self, record: StoreRecord, info: DeviceInfo | None) -> bool:
        """Return whether the pool is active and no change of it was interrupted, by the given record and state."""
        return (
            record.state is StoreState.READY
            and not record.clean
            and record.data_target is None
            and record.metadata_target is None
            and info is not None
            and info.live_table
            and not info.suspended
        )

    def activate(self, record: StoreRecord) -> StoreRecord:
        """Bring the pool up, with a checked generation; return the record as it is then. Safe to repeat.

        Raises AlreadyExists (another store holds the pool's name), NeedsRepair, Unavailable.
        """
        pool = self.pool(record)
        was_active = pool.is_active()
        info = self.require_external(pool) if record.pool else self._bring_up(pool, record)
        if info.suspended:
            resume(self._dm, pool.name)
        try:
            record = self._move_generation(pool, record)
        except BaseException:
            if not was_active:
                self._bring_down(pool, record)
            raise
        self._layout.mounts.mkdir(mode=0o700, exist_ok=True)
        mount.ensure_shared(self._layout.mounts)
        return record

    def deactivate(self, record: StoreRecord) -> StoreRecord:
        """Take the pool down in whatever state it is, and release its loop devices. Safe to repeat.

        A pool that was down already keeps its record: one that ended uncleanly is still checked at its activation.
        Raises InUse while a volume is in use.
        """
        pool = self.pool(record)
        was_active = pool.is_active()
        self.require_own_devices(record)
        self.deactivate_volumes(record)
        self.unmount_all()
        self._bring_down(pool, record)
        return self.save(replace(record, clean=True), "pool down") if was_active else record

    def deactivate_volumes(self, record: StoreRecord) -> None:
        """Remove the devices of all volumes. Raises InUse, with its users, if one is open; all stay then."""
        for name in self.plan_deactivation(record):
            with suppress(NotFound):
                self._dm.remove(name)

    def plan_deactivation(self, record: StoreRecord) -> list[str]:
        """Return the names of the devices of all active volumes. Raises InUse, with its users, if one is open."""
        active = [device.name for device in self._dm.devices() if record.device_id_of(device.name) is not None]
        for name in active:
            with suppress(NotFound):
                info = self._dm.info(name)
                if info.open_count:
                    raise self._in_use(record, info)
        return active

    def unmount_all(self) -> None:
        """Unmount what is mounted below the store, the shared folder of mounts last. Raises InUse."""
        for folder in (self._layout.work, self._layout.mounts):
            for entry in mount.under(folder):
                mount.unmount(Path(entry.target))

    def require_own_devices(self, record: StoreRecord) -> None:
        """Raise AlreadyExists for an active pool on other devices: a copied store has the names of the original."""
        pool = self.pool(record)
        if record.pool or not pool.is_active():
            return
        table = pool.table()
        data, meta = self._layout.data(record), self._layout.metadata(record)
        for backing in (data, meta):
            if backing.is_file and not backing.path.exists():
                raise NeedsRepair(
                    f"the pool's file {backing.path} was removed, while the pool is active",
                    hint="copy what is needed out of its volumes now: with the pool, the file's content goes",
                )
        if not (data.is_at(table.data_device) and meta.is_at(table.metadata_device)):
            held = block.describe(table.data_device)
            raise AlreadyExists(
                f"the pool {pool.name} is held by another store, on {held}",
                hint="use that store, or take its pool down",
            )

    def require_external(self, pool: ThinPool) -> DeviceInfo:
        """Return the device of a pool that existed before the store. Raises Unavailable while it is not active."""
        info = pool.info()
        if info is None or not info.live_table:
            raise Unavailable(f"the pool {pool.name} is not active", hint="activate it with the tool that made it")
        return info

    def save(self, record: StoreRecord, name: str) -> StoreRecord:
        """Commit the store's record; return it. `name` is for the trace."""
        with self._ledger.transaction(name):
            self._ledger.save_store(record)
        return record

    def _bring_up(self, pool: ThinPool, record: StoreRecord) -> DeviceInfo:
        """Activate the pool on its two devices. Loop devices that were attached here are released if that fails."""
        backings = (self._layout.data(record), self._layout.metadata(record))
        info = pool.info()
        fresh = [backing for backing in backings if backing.attached_number() is None]
        if info is not None and info.live_table:
            self.require_own_devices(record)
            return info
        try:
            data, meta = (backing.attach() for backing in backings)
            if record.state is StoreState.READY:
                self._check_metadata(record, backings[1].node(), backings[1].path)
            return pool.activate(pool_table(record.data_size, data, meta, record.block_size))
        except BaseException:
            for backing in fresh:
                with suppress(DmthinError):
                    backing.detach()
            raise

    def _check_metadata(self, record: StoreRecord, node: Path, path: Path) -> None:
        """Raise NeedsRepair for metadata that the kernel would format, or that thin_check finds damaged."""
        if not spacemap.is_metadata(node):
            # The kernel takes metadata without a superblock for new, and formats it.
            raise NeedsRepair(f"{path} holds no thin-pool metadata", hint="is it the right device?")
        if not record.clean:
            logger.info("the pool was not shut down cleanly: checking its metadata")
            metadata.check(node)  # the device, not the file: thin_check uses direct I/O, which a file may refuse

    def _bring_down(self, pool: ThinPool, record: StoreRecord) -> None:
        if record.pool:
            return
        pool.deactivate()
        self._layout.data(record).detach()
        self._layout.metadata(record).detach()

    def _move_generation(self, pool: ThinPool, record: StoreRecord) -> StoreRecord:
        """Advance the pool's transaction id and the ledger's generation together, once in each activation.

        The ledger is written first, and last says that the pool is up. So a pool that is one behind a ledger which does
        not say so was left by a process that died in between. Any other difference means that the ledger was restored
        from an old copy, or that another program has changed the pool: NeedsRepair.
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
            record = self.save(replace(record, generation=found + 1), "next generation")
        pool.set_transaction_id(found, record.generation)
        return self.save(replace(record, clean=False), "pool up")

    def _in_use(self, record: StoreRecord, info: DeviceInfo) -> InUse:
        number = record.device_id_of(info.name)
        volume = self._ledger.by_id(number) if number is not None else None
        title = volume.title if volume else f"device {info.name}"
        who = holders.describe(info.dev)
        return InUse(f"the {title} is in use by {who}", hint="unmount it, or stop that, first")


def pool_table(data_size: int, data: str, meta: str, block_size: int) -> PoolTable:
    """Return the table of a pool on two devices, with as many whole blocks as fit into `data_size` bytes."""
    blocks = data_size // block_size
    return PoolTable(blocks * block_size, meta, data, block_size, min(_LOW_WATER_BLOCKS, blocks // 10))
