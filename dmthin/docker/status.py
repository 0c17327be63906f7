"""The driver's data for `docker info` and `docker inspect`: the fields of Docker's devicemapper driver, and three more.

Sizes have the format of that driver: decimal units, four digits.
"""

import os

from dmthin.errors import DmthinError
from dmthin.kernel import block
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import State, Volume
from dmthin.store.store import Store

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

Pairs = list[list[str]]
"""Lists of a label and a value."""


def status_pairs(store: Store, log: str = "") -> Pairs:
    """Return the driver's status, in Docker's order, and where its log is.

    It is read from the kernel and does not wait for any lock.
    """
    report = store.pool.status()
    options = store.options
    data_node, metadata_node = _nodes(store)
    pairs = [
        ["Pool Name", report.name],
        ["Pool Blocksize", decimal_size(report.block_size)],
        ["Base Device Size", decimal_size(options.base_size)],
        ["Backing Filesystem", options.file_system.name],
        ["Udev Sync Supported", "true"],
        ["Data file", data_node],
        ["Metadata file", metadata_node],
        ["Data loop file", report.data if report.data_allocated is not None else ""],
        ["Metadata loop file", report.metadata if report.metadata_allocated is not None else ""],
        ["Data Space Used", decimal_size(report.data_used)],
        ["Data Space Total", decimal_size(report.data_size)],
        ["Data Space Available", decimal_size(report.data_available)],
        ["Metadata Space Used", decimal_size(report.metadata_used)],
        ["Metadata Space Total", decimal_size(report.metadata_size)],
        ["Metadata Space Available", decimal_size(report.metadata_available)],
        ["Thin Pool Minimum Free Space", decimal_size(report.data_size * options.min_free_percent // 100)],
        ["Deferred Removal Enabled", str(options.deferred_removal).lower()],
        ["Deferred Deletion Enabled", str(options.deferred_deletion).lower()],
        ["Deferred Deleted Device Count", str(_deferred(store.ledger))],
        ["Library Version", f"dm ioctl {store.dm.version()}"],
        ["Pool Mode", str(report.status.mode) if report.status else "inactive"],
        ["Pool Needs Check", str(report.status.needs_check).lower() if report.status else "unknown"],
        ["Log", log],
    ]
    return [pair for pair in pairs if pair[1]]


def metadata(store: Store, volume: Volume) -> dict[str, str]:
    """Return the data of one volume under the keys of Docker's driver."""
    return {
        "DeviceId": str(volume.device_id),
        "DeviceSize": str(volume.size),
        "DeviceName": store.ledger.store().device_name(volume.device_id),
    }


def decimal_size(size: int) -> str:
    """Return a size in decimal units, in the format of go-units' HumanSize: `10.74GB`."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.4g}{_UNITS[unit]}"


def _nodes(store: Store) -> tuple[str, str]:
    """Return the pool's data and metadata devices, empty while it is not active."""
    try:
        table = store.lifecycle.activation.pool(store.ledger.store()).table()
        return os.fspath(block.node_of(table.data_device)), os.fspath(block.node_of(table.metadata_device))
    except DmthinError:
        return "", ""


def _deferred(ledger: Ledger) -> int:
    return sum(volume.state is State.REMOVING for volume in ledger.unfinished())
