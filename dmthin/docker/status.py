"""What `docker info` and `docker inspect` show: the fields of Docker's devicemapper driver, and two more.

Sizes are written as that driver wrote them: decimal units, four digits.
"""

import os

from dmthin.errors import DmthinError
from dmthin.kernel import block
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import State, Volume
from dmthin.store.store import Store

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

Pairs = list[list[str]]


def status_pairs(store: Store) -> Pairs:
    """The driver's status, in Docker's order. Asks the kernel for what it knows at once, and waits for nothing."""
    report = store.pool.status()
    options = store.options
    data_node, metadata_node = _nodes(store)
    pairs = [
        ["Pool Name", report.name],
        ["Pool Blocksize", human(report.block_size)],
        ["Base Device Size", human(options.base_size)],
        ["Backing Filesystem", options.file_system.name],
        ["Udev Sync Supported", "true"],
        ["Data file", data_node],
        ["Metadata file", metadata_node],
        ["Data loop file", report.data if report.data_allocated is not None else ""],
        ["Metadata loop file", report.metadata if report.metadata_allocated is not None else ""],
        ["Data Space Used", human(report.data_used)],
        ["Data Space Total", human(report.data_size)],
        ["Data Space Available", human(report.data_available)],
        ["Metadata Space Used", human(report.metadata_used)],
        ["Metadata Space Total", human(report.metadata_size)],
        ["Metadata Space Available", human(report.metadata_available)],
        ["Thin Pool Minimum Free Space", human(report.data_size * options.min_free_percent // 100)],
        ["Deferred Removal Enabled", str(options.deferred_removal).lower()],
        ["Deferred Deletion Enabled", str(options.deferred_deletion).lower()],
        ["Deferred Deleted Device Count", str(_deferred(store.ledger))],
        ["Library Version", f"dm ioctl {store.dm.version()}"],
        ["Pool Mode", str(report.status.mode) if report.status else "inactive"],
        ["Pool Needs Check", str(report.status.needs_check).lower() if report.status else "unknown"],
    ]
    return [pair for pair in pairs if pair[1]]


def metadata(store: Store, volume: Volume) -> dict[str, str]:
    """What is known of one volume, as Docker's driver named it."""
    return {
        "DeviceId": str(volume.device_id),
        "DeviceSize": str(volume.size),
        "DeviceName": store.ledger.store().device_name(volume.device_id),
    }


def human(size: int) -> str:
    """A size in decimal units, as Go's units.HumanSize writes it: `10.74GB`."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.4g}{_UNITS[unit]}"


def _nodes(store: Store) -> tuple[str, str]:
    """The block devices below the pool, empty while it is not active."""
    try:
        table = store.lifecycle.activation.pool(store.ledger.store()).table()
        return os.fspath(block.node_of(table.data_device)), os.fspath(block.node_of(table.metadata_device))
    except DmthinError:
        return "", ""


def _deferred(ledger: Ledger) -> int:
    return sum(volume.state is State.REMOVING for volume in ledger.unfinished())
