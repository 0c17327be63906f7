"""Checks before a store is made: the kernel, the host's space, the devices."""

import shutil
from contextlib import suppress
from pathlib import Path

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    NoDataSpace,
    NotFound,
    Unavailable,
)
from dmthin.kernel import block, process
from dmthin.kernel.dmioctl import IoctlDeviceMapper, require_thin_pool
from dmthin.kernel.thin import PoolStatus, PoolTable
from dmthin.pool import metadata
from dmthin.pool.backing import Backing
from dmthin.pool.thinpool import ThinPool
from dmthin.units import MIB, format_size

_LEAST_FREE = 64 * MIB
"""Bytes that the host file system must have free for the ledger and the first of the pool's metadata."""


def require_kernel() -> None:
    """Load dm-thin if need be. Raises Unavailable for a kernel without it."""
    try:
        with IoctlDeviceMapper() as dm:
            require_thin_pool(dm)
    except Unavailable:
        if not process.find("modprobe"):
            raise
        with suppress(DmthinError):
            process.run("modprobe", "dm-thin-pool")
        with IoctlDeviceMapper() as dm:
            require_thin_pool(dm)


def require_room(root: Path) -> None:
    """Raise NoDataSpace on a full host file system: sparse files could be made, but not written."""
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < _LEAST_FREE:
        raise NoDataSpace(
            f"the file system of {root} has only {format_size(free)} free",
            hint=f"free at least {format_size(_LEAST_FREE)}, or choose another --root",
        )


def require_absent(backing: Backing) -> None:
    """Raise AlreadyExists for a file of the pool that is there already."""
    if backing.is_file and backing.path.exists():
        raise AlreadyExists(f"{backing.path} exists already", hint="move it away, or choose another --root")


def require_blank_device(device: Path, *, force: bool) -> None:
    """Raise InvalidValue, InUse or AlreadyExists for a path that is no device, is claimed, or carries data."""
    if not block.is_block_device(device):
        raise InvalidValue(f"{device} is not a block device", hint="check the path")
    block.require_unused(device)
    found = block.signature(device)
    if found and not force:
        raise AlreadyExists(f"{device} carries data ({found})", hint="give --force to overwrite it")


def require_empty_pool(name: str) -> int:
    """Return the block size of an existing pool in bytes. Raises NotFound, InvalidValue, InUse (it is not empty)."""
    with IoctlDeviceMapper() as dm:
        try:
            status = PoolStatus.parse(dm.status(name))
            table = PoolTable.parse(dm.table(name))
        except NotFound:
            raise NotFound(f"there is no pool {name}", hint="see: dmsetup ls --target thin-pool") from None
        except KernelError:
            raise InvalidValue(f"{name} is not a thin pool", hint="see: dmsetup ls --target thin-pool") from None
    used = status.transaction_id or status.data_used_blocks or status.held_metadata_root is not None
    if used or _volumes_in(name, table):
        raise InUse(
            f"the pool {name} is in use by another store or program"
            f" (transaction id {status.transaction_id}, {status.data_used_blocks} blocks used)",
            hint="give a pool that has not been used yet",
        )
    return table.block_size


def _volumes_in(name: str, table: PoolTable) -> set[int]:
    """Return the device ids in a pool, by a metadata snapshot of it."""
    with IoctlDeviceMapper() as dm, ThinPool(name, "", dm, dm).metadata_snapshot():
        return metadata.device_ids(block.node_of(table.metadata_device))
