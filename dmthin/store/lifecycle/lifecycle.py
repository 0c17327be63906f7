"""The life of a store's pool: made, activated, extended, removed, and recovered after an interrupted change."""

from dataclasses import replace

from dmthin.errors import NotFound
from dmthin.kernel import block
from dmthin.kernel.devicemapper import DeviceBuilder, DeviceMapper
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle.activation import PoolActivation
from dmthin.store.lifecycle.growth import PoolGrowth
from dmthin.store.lifecycle.removal import StoreRemoval
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import StoreRecord, StoreState


class PoolLifecycle:
    """What is done to one store's pool as a whole. The caller holds the pool lock exclusively."""

    def __init__(self, layout: Layout, ledger: Ledger, dm: DeviceMapper, builder: DeviceBuilder) -> None:
        self._layout = layout
        self._ledger = ledger
        self.activation = PoolActivation(layout, ledger, dm, builder)
        self.growth = PoolGrowth(layout, self.activation)
        self.removal = StoreRemoval(layout, ledger, self.activation)

    def recover(self) -> StoreRecord:
        """Finish or undo an interrupted change of the pool, and bring the pool up; return the record then.

        Each change that finds the pool not in order calls it first, also after a reboot. Raises NotFound if the store
        was being made or destroyed: nothing of it is left then.
        """
        record = self._ledger.store()
        self._ledger.sync()
        if record.state is not StoreState.READY:
            self.removal.carry_out(record)
            raise NotFound(f"{self._layout.root} is no store any more", hint="make one with: dmthin pool create")
        record = self.activation.activate(record)
        if record.data_target is not None or record.metadata_target is not None:
            record = self.growth.finish(record)
        return record

    def build(self, record: StoreRecord) -> StoreRecord:
        """Make the pool of a store that is being made: files, loop devices or disk parts, pool device.

        Return the record with the real sizes.
        """
        if record.pool:
            return self.activation.activate(record)
        data, meta = self._layout.data(record), self._layout.metadata(record)
        for backing, length in ((data, record.data_target), (meta, record.metadata_target)):
            if length is not None:
                backing.make(length)
        if not meta.is_file:
            block.wipe_first_block(meta.path)
        size = data.size() // record.block_size * record.block_size
        record = replace(record, data_size=size, metadata_size=meta.size(), data_target=None, metadata_target=None)
        return self.activation.activate(record)
