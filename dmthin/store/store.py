"""A store: a directory with the pool's files, the ledger and the mount points. What every front end holds.

A Store object keeps no state of its own: it asks the ledger and the kernel each time. So any number of processes can
work on one store at the same time, and each may be killed at any instant.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from dmthin.errors import InvalidValue
from dmthin.kernel.devicemapper import UdevRules
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.store.config.layout import DEFAULT_ROOT, Layout
from dmthin.store.config.options import POOL_OPTIONS, StorageOptions, parse_pairs
from dmthin.store.containers import Containers
from dmthin.store.images import Images
from dmthin.store.layers import Layers
from dmthin.store.lifecycle.gate import Gate
from dmthin.store.lifecycle.lifecycle import PoolLifecycle
from dmthin.store.pool import Pool
from dmthin.store.snapshots import Snapshots
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord
from dmthin.store.volumes.background import Background
from dmthin.store.volumes.bases import Bases
from dmthin.store.volumes.children import Children
from dmthin.store.volumes.cleanup import Cleanup
from dmthin.store.volumes.spares import Spares
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

_HINTS = dict.fromkeys(POOL_OPTIONS, "it is fixed when the pool is made; leave the option out")
_HINTS |= {
    "dm.loopdatasize": "grow it with: dmthin pool extend --data-size",
    "dm.loopmetadatasize": "grow it with: dmthin pool extend --metadata-size",
}


class Store:
    """An open store. Threads may share one; processes open their own.

    Its parts are `pool`, `images` and `containers`, `layers` for dockerd and `snapshots` for containerd.
    `options` are storage options (`dm.basesize=20G`) that override those of the store, for this object only.
    `background` are the queues of a daemon; without it, all work is done before a call returns.
    """

    def __init__(
        self, root: Path = DEFAULT_ROOT, options: Iterable[str] = (), *, background: Background | None = None
    ) -> None:
        """Open a store that exists. Nothing is activated or changed.

        Raises NotFound (no store there), InvalidValue (an option, or one that differs from how the pool was made),
        Unavailable (a newer schema, no device-mapper), NotPermitted.
        """
        self.layout = Layout.at(root)
        given = parse_pairs(options)
        self.ledger = Ledger(self.layout.ledger)
        self.options = _with_stored(given, self.ledger.store())
        self.background = background or Background()
        self.locks = Locks(self.layout.lock)
        self.dm = IoctlDeviceMapper(UdevRules.PRIVATE)
        self.lifecycle = PoolLifecycle(self.layout, self.ledger, self.dm, Dmsetup())

        layout, ledger, chosen, queue = self.layout, self.ledger, self.options, self.background.work
        gate = Gate(layout, ledger, self.locks, self.lifecycle)
        volumes = Volumes(layout, ledger, self.locks, self.dm, gate, chosen)
        bases = Bases(ledger, self.locks, volumes)
        self.volumes = volumes
        self.spares = Spares(ledger, volumes, self.background.spares)
        self.cleanup = Cleanup(ledger, volumes, self.spares, queue)
        children = Children(ledger, volumes, bases, self.spares, chosen, queue)
        self.images = Images(ledger, volumes, bases, chosen)
        self.containers = Containers(layout, ledger, volumes, children)
        self.layers = Layers(layout, ledger, volumes, children, self.cleanup, chosen)
        self.snapshots = Snapshots(ledger, volumes, children, self.cleanup)
        self.pool = Pool(layout, ledger, self.locks, self.lifecycle, volumes.recovery)

    def recover(self) -> None:
        """Recover interrupted operations, and removals that were left to the last user of a device.

        Where there are none, a pool that is down stays down.
        """
        self.volumes.recovery.run()

    def close(self) -> None:
        """Close the ledger and the control node; may be called twice."""
        self.ledger.close()
        self.dm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_stored(given: dict[str, str], record: StoreRecord) -> StorageOptions:
    """Return the store's options, overridden by the given ones. Raises InvalidValue for what the pool cannot take."""
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
