"""The block devices of a store's volumes, as the kernel has them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dmthin.errors import AlreadyExists, DmthinError, NotFound
from dmthin.kernel import block
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.pool.volume import ThinVolume
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.lifecycle.gate import ActivePool
from dmthin.store.state.model import StoreRecord, Volume


@dataclass(slots=True)
class OpenDevice:
    """A volume's device, held open by the descriptor `fd`: while it is, its number N of /dev/dm-N stays its own."""

    info: DeviceInfo
    fd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Devices:
    """The devices of one store. `record` gives their names, which do not change while the store exists."""

    def __init__(self, layout: Layout, record: StoreRecord, dm: DeviceMapper, options: StorageOptions) -> None:
        self._layout = layout
        self._record = record
        self._dm = dm
        self._options = options

    def info(self, volume: Volume) -> DeviceInfo | None:
        """Return the state of a volume's device, None while there is none.

        Raises AlreadyExists if the device belongs to a copy of this store.
        """
        name, uuid = self._name_and_uuid(volume)
        try:
            info = self._dm.info(name)
        except NotFound:
            return None
        if not uuid.startswith(info.uuid):
            raise AlreadyExists(f"the device {name} is held by another store", hint="use that store")
        return info

    def thin(self, pool: ActivePool, volume: Volume) -> ThinVolume:
        """Return a volume as a device of the active pool."""
        return ThinVolume(pool.thin, volume.device_id, volume.size, *self._name_and_uuid(volume), self._dm)

    def activate(self, pool: ActivePool, volume: Volume) -> DeviceInfo:
        """Create the block device of a volume, or complete the one that is there. Raises what `ThinVolume` does."""
        return self.thin(pool, volume).activate(pool.number, read_only=volume.read_only)

    def deactivate(self, pool: ActivePool, volume: Volume) -> bool:
        """Remove a volume's device: False if its last user's end does that, as dm.use_deferred_removal allows.

        Raises InUse, with its users, where that is not allowed.
        """
        return self.thin(pool, volume).deactivate(deferred=self._options.deferred_removal)

    def open(self, pool: ActivePool, volume: Volume) -> OpenDevice:
        """Activate a volume and hold its device open. The pool lock is not needed while it is open."""
        info = self.activate(pool, volume)
        return OpenDevice(info, block.open_descriptor(Path(info.node)))

    def is_pool_active(self) -> bool:
        """Return whether the pool is active. Does not activate it."""
        try:
            return self._dm.info(self._record.pool_name).live_table
        except NotFound:
            return False

    def device_id_at(self, node: Path) -> int | None:
        """Return the device id of the volume whose block device is at `node`, None for any other file.

        The caller compares `info` of that volume: a device of a copy of this store has the same name.
        """
        try:
            name = block.mapped_name(block.number(node))
        except (DmthinError, OSError):
            return None
        return self._record.device_id_of(name)

    def _name_and_uuid(self, volume: Volume) -> tuple[str, str]:
        record, number = self._record, volume.device_id
        return record.device_name(number), f"{record.device_uuid(number)}-{self._layout.identity}"
