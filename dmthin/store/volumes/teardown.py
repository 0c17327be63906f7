"""Removal of everything that there is of one volume: mounts, blocks, device, device id, record."""

import logging
from contextlib import suppress
from dataclasses import replace

from dmthin.errors import NotFound
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.lifecycle.gate import ActivePool
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import FROZEN_NAMES, State, Volume
from dmthin.store.state.snapshot_table import SnapshotTable
from dmthin.store.volumes import busy
from dmthin.store.volumes.devices import Devices

logger = logging.getLogger(__name__)


class Teardown:
    """Takes volumes of one store down whose record says so: in state MAKING or REMOVING."""

    def __init__(self, layout: Layout, ledger: Ledger, devices: Devices, options: StorageOptions) -> None:
        self._layout = layout
        self._ledger = ledger
        self._devices = devices
        self._options = options
        self._snapshots = SnapshotTable(ledger)

    def run(self, pool: ActivePool, volume: Volume, *, patient: bool = True) -> None:
        """Remove a volume, its record last. The caller holds its lock. Safe to repeat.

        A device that is still open keeps the volume's record, for the next recovery; with `patient` it is tried for a
        moment first. Raises what the pool's messages raise.
        """
        if (now := self._ledger.by_id(volume.device_id)) is None:
            return
        thin = self._devices.thin(pool, volume)
        info = thin.info()
        busy.detach(info)
        with suppress(OSError):
            self._layout.work_point(volume.device_id).rmdir()
        if self._has_own_blocks(volume, now) and not (info and info.open_count):
            with suppress(NotFound):
                thin.activate(pool.number)
                thin.discard_all()
        if not thin.deactivate(deferred=True, patient=patient):
            logger.info("the %s is still in use; its last user's end removes it", volume.title)
            return
        pool.thin.delete(volume.device_id)
        # Not durable: a record that a power cut brings back is of a volume that the pool does not have, and the next
        # recovery deletes it again.
        with self._ledger.transaction(f"forget {volume.name}", durable=False):
            self._ledger.forget(volume)

    def mark(self, volume: Volume) -> Volume:
        """Write state REMOVING and free the name and the key, in the caller's ledger transaction; return the volume."""
        removing = replace(volume, name=f"@removing/{volume.device_id}", state=State.REMOVING)
        self._ledger.save(removing)
        self._snapshots.forget(removing)
        return removing

    def _has_own_blocks(self, volume: Volume, now: Volume) -> bool:
        """Return whether a discard of the volume may free blocks.

        A read-only volume has its origin's blocks, except for a replayed journal. A volume in state MAKING has them too
        while its parent is there; when that has been removed (`now`, the record as it is), the blocks are its own. A
        frozen snapshot has the blocks that have been overwritten in its parent since.
        """
        frozen = volume.name.startswith(FROZEN_NAMES)
        may_have = volume.state is State.REMOVING or frozen or now.parent != volume.parent
        return may_have and self._options.discard and not volume.read_only
