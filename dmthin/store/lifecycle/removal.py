"""The end of a store: its pool, its files and its record. The caller holds the pool lock exclusively."""

from dataclasses import replace

from dmthin.kernel import block
from dmthin.pool import spacemap
from dmthin.pool.thinpool import ThinPool
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle.activation import PoolActivation
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import StoreRecord, StoreState


class StoreRemoval:
    """Removes one store with everything that it holds."""

    def __init__(self, layout: Layout, ledger: Ledger, activation: PoolActivation) -> None:
        self._layout = layout
        self._ledger = ledger
        self._activation = activation

    def require_possible(self, record: StoreRecord) -> None:
        """Raise Unavailable or AlreadyExists for a pool that is not there or is another store's."""
        if record.pool:
            self._activation.require_external(self._activation.pool(record))
        self._activation.require_own_devices(record)

    def destroy(self, record: StoreRecord) -> None:
        """Remove the store for good. Raises InUse while a volume is in use; nothing has been removed then."""
        self.require_possible(record)
        self._activation.deactivate_volumes(record)
        self.carry_out(self._activation.save(replace(record, state=StoreState.DESTROYING), "destroy"))

    def carry_out(self, record: StoreRecord) -> None:
        """Remove devices, loop devices, files, and the record itself last. Safe to repeat.

        A block device stays, its first metadata block zeroed. A pool that existed before the store stays, emptied.
        """
        activation, pool = self._activation, self._activation.pool(record)
        activation.require_own_devices(record)
        activation.deactivate_volumes(record)
        activation.unmount_all()
        if record.pool:
            self._empty(pool)
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

    def _empty(self, pool: ThinPool) -> None:
        """Delete the store's volumes from a pool that existed before, and give it back its first transaction id."""
        if not pool.is_active():
            return
        for volume in self._ledger.volumes():
            pool.delete(volume.device_id)
        transaction_id = pool.status().transaction_id
        if transaction_id:
            pool.set_transaction_id(transaction_id, 0)
