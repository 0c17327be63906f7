"""The gate: how a change of a volume gets hold of the pool."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dmthin.errors import Unavailable
from dmthin.pool.thinpool import ThinPool
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle.lifecycle import PoolLifecycle
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord

_ATTEMPTS = 8
"""How often the pool is brought up for one change before that gives up: something takes it down each time."""


@dataclass(frozen=True, slots=True)
class ActivePool:
    """The pool while its lock is held shared: it is active, and its table does not change.

    `number` is the `major:minor` of its device, `record` the store's record.
    """

    thin: ThinPool
    number: str
    record: StoreRecord


class Gate:
    """Gives out the active pool of one store, brought up and recovered if need be."""

    def __init__(self, layout: Layout, ledger: Ledger, locks: Locks, lifecycle: PoolLifecycle) -> None:
        self._layout = layout
        self._ledger = ledger
        self._locks = locks
        self._lifecycle = lifecycle

    @contextmanager
    def hold(self) -> Iterator[ActivePool]:
        """Hold the pool lock shared, with the pool active and in order. Does not nest, and must be short.

        A change of the pool itself waits for the holder. Raises what `PoolLifecycle.recover` does, and Unavailable
        for a pool that keeps going down.
        """
        activation = self._lifecycle.activation
        for _ in range(_ATTEMPTS):
            with self._locks.share_pool():
                record = self._ledger.store()
                pool = activation.pool(record)
                info = pool.info()
                if info is not None and activation.is_in_order(record, info):
                    if info.uuid != pool.uuid and not record.pool:
                        activation.require_own_devices(record)
                    yield ActivePool(pool, info.number, record)
                    return
            # The shared lock is released here: recovery needs the lock exclusively, and a process that holds it shared
            # while it waits for that would wait for itself.
            with self._locks.own_pool():
                self._lifecycle.recover()
        raise Unavailable(
            f"the pool of {self._layout.root} keeps going down", hint="see: dmthin pool status, and dmesg"
        )
