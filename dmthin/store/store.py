"""A store: what every face holds. A directory with the pool's files, the ledger, and the mount points.

A Store object keeps no truth of its own: it asks the ledger and the kernel each time, so any number of processes can
work on one store at once, and each may be killed at any instant.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from dmthin.errors import InvalidValue, Unavailable
from dmthin.kernel.devicemapper import UdevRules
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.store.config.layout import DEFAULT_ROOT, Layout
from dmthin.store.config.options import POOL_OPTIONS, StorageOptions, parse_pairs
from dmthin.store.containers import Containers
from dmthin.store.images import Images
from dmthin.store.layers import Layers
from dmthin.store.lifecycle.pool import Pool
from dmthin.store.lifecycle.pool_lifecycle import PoolLifecycle
from dmthin.store.snapshots import Snapshots
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord, Volume
from dmthin.store.volumes.bases import Bases
from dmthin.store.volumes.change import ActivePool
from dmthin.store.volumes.recovery import Recovery
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

_RECOVERIES = 8
_HINTS = dict.fromkeys(POOL_OPTIONS, "it is fixed when the pool is made; leave the option out")
_HINTS |= {
    "dm.loopdatasize": "grow it with: dmthin pool extend --data-size",
    "dm.loopmetadatasize": "grow it with: dmthin pool extend --metadata-size",
}


class Store:
    """An open store: `store.pool`, `store.images`, `store.containers`. Threads may share one; processes open their own.

    `options` are storage options (`dm.basesize=20G`) that go before those of the store, for this object only.
    """

    def __init__(self, root: Path = DEFAULT_ROOT, options: Iterable[str] = ()) -> None:
        """Open a store that exists; nothing is activated or changed yet.

        Raises NotFound (no store there), InvalidValue (an option, or one that differs from how the pool was made),
        Unavailable (a newer schema, no device-mapper), NotPermitted.
        """
        self.layout = Layout(root.absolute().resolve())
        given = parse_pairs(options)
        self.ledger = Ledger(self.layout.ledger)
        record = self.ledger.store()
        self.options = _with_stored(given, record)
        self.locks = Locks(self.layout.lock)
        self.dm = IoctlDeviceMapper(UdevRules.PRIVATE)
        self.lifecycle = PoolLifecycle(self.layout, self.ledger, self.dm, Dmsetup())
        self.volumes = Volumes(self.layout, self.ledger, self.locks, self.dm, self.options, self.change)
        self.sweeper = Recovery(self.ledger, self.locks, self.dm, self.volumes)
        bases = Bases(self.ledger, self.locks, self.volumes)
        self.images = Images(self.ledger, self.volumes, bases, self.options)
        self.layers = Layers(self.layout, self.ledger, self.volumes, bases, self.options)
        self.snapshots = Snapshots(self.ledger, self.volumes, self.layers)
        self.containers = Containers(self.layout, self.ledger, self.volumes, self.layers)
        self.pool = Pool(self.layout, self.ledger, self.locks, self.lifecycle, self.change)

    def close(self) -> None:
        """Let go of the ledger and the control node; may be called twice."""
        self.ledger.close()
        self.dm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def change(self) -> Iterator[ActivePool]:
        """Share the pool for one change: it is up, and what processes that died have left is ended first.

        Must not be nested, and must be short: who changes the pool itself waits for it.
        """
        for _ in range(_RECOVERIES):
            with self.locks.share_pool():
                record = self.ledger.store()
                thin = self.lifecycle.pool(record)
                info = thin.info()
                growing: list[Volume] = []
                if info is not None and self.lifecycle.is_in_order(record, info):
                    if info.uuid != thin.uuid and not record.pool:
                        self.lifecycle.require_own_devices(record)
                    pool = ActivePool(thin, info.number, record)
                    growing = self.sweeper.sweep(pool)
                    if not growing:
                        yield pool
                        return
            if growing:
                for volume in growing:
                    self.sweeper.finish_growth(volume)
            else:
                with self.locks.own_pool():
                    self.lifecycle.recover()
        raise Unavailable(f"the pool of {self.layout.root} does not stay up", hint="see: dmthin pool status, and dmesg")

    def end_leftovers(self) -> None:
        """End what removals left to the last user of a device, if that has gone, and what processes that died left.

        Where there is nothing of that sort, a pool that is down stays down.
        """
        if self.ledger.is_work_left():
            with self.change():
                pass


def _with_stored(given: dict[str, str], record: StoreRecord) -> StorageOptions:
    """The store's options with the given ones before them. Raises InvalidValue for one that the pool cannot follow."""
    stored = parse_pairs(record.options)
    default = StorageOptions.from_pairs(stored)
    merged = StorageOptions.from_pairs({**stored, **given})
    for key in POOL_OPTIONS:
        was, now = (options.text_of(key) for options in (default, merged))
        if key in given and was != now:
            raise InvalidValue(f"{key}={given[key]} differs from the {was or 'none'} of this store", hint=_HINTS[key])
    if merged.base_size < default.base_size:
        raise InvalidValue(
            f"dm.basesize={given['dm.basesize']} is less than this store's {format_exact(default.base_size)}",
            hint="it only grows",
        )
    return merged
