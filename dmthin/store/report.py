"""Reports of a store for front ends: its volumes as the ledger and the kernel have them now, and their usage.

Nothing here changes the store, except that `usage` activates the pool and holds a metadata snapshot for a moment.
All sizes are bytes, times are seconds since the epoch, and None is what is not known.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from dmthin.errors import DmthinError, NotFound
from dmthin.kernel import holders, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.kernel.holders import Holder
from dmthin.kernel.thin import PoolMode, ThinStatus
from dmthin.pool.metadata import Usage
from dmthin.store.owners import NO_OWNERS, Owner, Owners
from dmthin.store.pool import PoolReport
from dmthin.store.state.model import Kind, State, Volume
from dmthin.store.store import Store
from dmthin.units import format_size

_WARN_PERCENT = 80
_MODE_MEANS = {
    PoolMode.READ_ONLY: "nothing new can be written",
    PoolMode.OUT_OF_DATA_SPACE: "writes wait for space: dmthin pool extend --data-size",
    PoolMode.FAIL: "no I/O works: deactivate it and run thin_check on its metadata",
}


class Activity(StrEnum):
    """The state of a volume: an operation in progress (the first three), or what the kernel says (the others)."""

    MAKING = "making"
    GROWING = "growing"
    REMOVING = "removing"
    SUSPENDED = "suspended"
    MOUNTED = "mounted"
    OPEN = "open"
    ACTIVE = "active"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One volume now. `parent` is a name; `device`, `open_count` and `mapped` are None while it is not active.

    `mounts` are its mount points in this process's namespace. `owner` is the engine that has it, where that was asked.
    """

    name: str
    kind: Kind
    size: int
    parent: str | None
    file_system: str
    created: int
    device_id: int
    state: Activity
    device: str | None
    open_count: int | None
    mounts: tuple[str, ...]
    mapped: int | None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A volume and its children, by name."""

    volume: VolumeView
    children: tuple["TreeNode", ...]


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """A volume's usage of the pool: `mapped` is `exclusive`, which its removal frees, plus `shared`."""

    name: str
    kind: Kind
    size: int
    mapped: int | None
    exclusive: int | None
    shared: int | None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The usage of a pool. The totals count each block once: `mapped` is what the pool has allocated."""

    volumes: tuple[VolumeUsage, ...]
    mapped: int
    exclusive: int
    shared: int


@dataclass(frozen=True, slots=True)
class VolumeDetail:
    """Everything about one volume. `ancestors` begin with the parent; `highest_mapped` is an offset in bytes."""

    volume: VolumeView
    ancestors: tuple[str, ...]
    children: tuple[str, ...]
    device_name: str
    device_uuid: str
    device_number: str | None
    highest_mapped: int | None
    holders: tuple[Holder, ...]


def volumes(store: Store, *kinds: Kind, owners: Owners = NO_OWNERS) -> list[VolumeView]:
    """Return the volumes of these kinds, or all, by name; also those that are being made or removed."""
    every = store.ledger.volumes()
    names = {volume.device_id: volume.name for volume in every}
    record = store.ledger.store()
    active = {device.name for device in store.dm.devices()}
    places = _places()
    views = []
    for volume in every:
        if kinds and volume.kind not in kinds:
            continue
        name = record.device_name(volume.device_id)
        info = _info(store, name) if name in active else None
        views.append(_view(volume, names, info, places, _mapped(store, info)[0], owners.of(volume.name)))
    return sorted(views, key=lambda view: view.name)


def volume(store: Store, name: str, *, owners: Owners = NO_OWNERS) -> VolumeView:
    """Return one volume. Raises NotFound."""
    for view in volumes(store, owners=owners):
        if view.name == name:
            return view
    raise _missing(name)


def tree(store: Store, *, owners: Owners = NO_OWNERS) -> tuple[TreeNode, ...]:
    """Return the volumes without a parent, each with its children."""
    children: dict[str | None, list[VolumeView]] = defaultdict(list)
    for view in volumes(store, owners=owners):
        children[view.parent].append(view)

    def grown(parent: str | None) -> tuple[TreeNode, ...]:
        return tuple(TreeNode(view, grown(view.name)) for view in children[parent])

    return grown(None)


def usage(store: Store, *, owners: Owners = NO_OWNERS) -> UsageReport:
    """Return what each volume maps, by name, from the pool's metadata. Raises what activation does."""
    blocks = store.pool.usage()
    pool = store.pool.status()
    every = sorted(store.ledger.volumes(), key=lambda volume: volume.name)
    found = [_usage(one, blocks.get(one.device_id), pool.block_size, owners.of(one.name)) for one in every]
    alone = sum(use.exclusive_blocks for use in blocks.values()) * pool.block_size
    return UsageReport(tuple(found), pool.data_used, alone, max(0, pool.data_used - alone))


def details(store: Store, names: Iterable[str], *, owners: Owners = NO_OWNERS) -> list[VolumeDetail]:
    """Return everything about some volumes, in the order of `names`. Raises NotFound for the first that is missing."""
    by_name = {view.name: view for view in volumes(store, owners=owners)}
    record = store.ledger.store()
    found = []
    for name in names:
        if name not in by_name:
            raise _missing(name)
        view = by_name[name]
        device_name = record.device_name(view.device_id)
        info = _info(store, device_name)
        found.append(
            VolumeDetail(
                volume=view,
                ancestors=tuple(_ancestors(view, by_name)),
                children=tuple(child.name for child in by_name.values() if child.parent == name),
                device_name=device_name,
                device_uuid=record.device_uuid(view.device_id),
                device_number=info.number if info else None,
                highest_mapped=_mapped(store, info)[1],
                holders=tuple(holders.of_device(info.dev)) if info and info.open_count else (),
            )
        )
    return found


def pool_warnings(report: PoolReport) -> list[str]:
    """Return warnings about a pool, one line each."""
    status = report.status
    if status is None:
        return []
    found = []
    if status.mode is not PoolMode.READ_WRITE:
        found.append(f"the pool is in mode {status.mode}: {_MODE_MEANS[status.mode]}")
    if status.needs_check:
        found.append("the pool needs a check: deactivate it and run thin_check on its metadata")
    if status.mode is PoolMode.FAIL:
        return found
    metadata_room = report.metadata_size - report.metadata_reserve
    for what, used, room in (
        ("data", report.data_used, report.data_size),
        ("metadata", report.metadata_used, metadata_room),
    ):
        if used * 100 > room * _WARN_PERCENT:
            percent = used * 100 // room if room else 100
            found.append(f"{percent}% of the pool's {what} is used: dmthin pool extend --{what}-size")
    pool_free = report.data_size - report.data_used
    if report.host_free is not None and report.host_free < pool_free:
        found.append(
            f"the host's file system has {format_size(report.host_free)} free,"
            f" the pool promises {format_size(pool_free)}"
        )
    return found


def _view(
    volume: Volume,
    names: dict[int, str],
    info: DeviceInfo | None,
    places: dict[int, list[str]],
    mapped: int | None,
    owner: Owner | None,
) -> VolumeView:
    mounts = tuple(places.get(info.dev, ())) if info else ()
    return VolumeView(
        name=volume.name,
        kind=volume.kind,
        size=volume.size,
        parent=names.get(volume.parent) if volume.parent is not None else None,
        file_system=volume.file_system,
        created=volume.created,
        device_id=volume.device_id,
        state=_activity(volume, info, mounts),
        device=info.node if info else None,
        open_count=info.open_count if info else None,
        mounts=mounts,
        mapped=mapped,
        owner=owner,
    )


def _usage(volume: Volume, use: Usage | None, block_size: int, owner: Owner | None) -> VolumeUsage:
    if use is None:  # made or removed since the metadata snapshot
        return VolumeUsage(volume.name, volume.kind, volume.size, None, None, None, owner)
    exclusive, shared = use.exclusive_blocks * block_size, use.shared_blocks * block_size
    return VolumeUsage(volume.name, volume.kind, volume.size, exclusive + shared, exclusive, shared, owner)


def _activity(volume: Volume, info: DeviceInfo | None, mounts: tuple[str, ...]) -> Activity:
    if volume.state is not State.READY:
        return Activity(volume.state.value)
    if info is None:
        return Activity.INACTIVE
    if info.suspended:
        return Activity.SUSPENDED
    if mounts:
        return Activity.MOUNTED
    return Activity.OPEN if info.open_count else Activity.ACTIVE


def _places() -> dict[int, list[str]]:
    """Return the mount points of each file system by its device."""
    places: dict[int, list[str]] = defaultdict(list)
    for entry in mount.table():
        places[entry.dev].append(entry.target)
    return places


def _info(store: Store, device_name: str) -> DeviceInfo | None:
    try:
        return store.dm.info(device_name)
    except NotFound:
        return None


def _mapped(store: Store, info: DeviceInfo | None) -> tuple[int | None, int | None]:
    """Return the bytes that an active volume maps, and the offset where the last of them ends."""
    if info is not None and info.live_table:
        # The device may be removed, or get another table, before it is asked.
        with suppress(DmthinError):
            status = ThinStatus.parse(store.dm.status(info.name))
            return status.mapped, status.highest_mapped
    return None, None


def _ancestors(view: VolumeView, by_name: dict[str, VolumeView]) -> Iterator[str]:
    while view.parent is not None and view.parent in by_name:
        yield view.parent
        view = by_name[view.parent]


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no volume {name!r}", hint="see: dmthin list")
