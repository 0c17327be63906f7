"""What a dry run prints: the steps of a change as commands that an administrator can paste, checked as the change is.

The lines do what dmthin does to the kernel. They do not write its ledger, so a volume that is made by hand is not one
of the store's: a comment says so.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

from dmthin.errors import InUse, InvalidValue, Unavailable
from dmthin.kernel import holders, mount
from dmthin.kernel.dmsetup import create_arguments, load_arguments
from dmthin.kernel.thin import MAX_DEVICE_ID, ThinTable
from dmthin.pool import filesystem
from dmthin.pool.filesystem import FileSystem
from dmthin.store import report
from dmthin.store.lifecycle.pool_lifecycle import pool_table
from dmthin.store.report import VolumeView
from dmthin.store.state.model import Kind, StoreRecord, Volume, check_name
from dmthin.store.store import Store
from dmthin.store.volumes.bases import base_name
from dmthin.units import format_exact

_LEDGER = "# dmthin also writes its ledger: what these lines make or remove by hand, it does not know of"


def pool_activate(store: Store) -> list[str]:
    """Loops and the pool's device, as far as they are not there. The next change by dmthin finds them."""
    record, layout = store.ledger.store(), store.layout
    pool = store.lifecycle.pool(record)
    if pool.is_active():
        return ["# the pool is active already"]
    if record.pool:
        raise Unavailable(f"the pool {record.pool} is not active", hint="activate it with the tool that made it")
    data, meta = layout.data(record), layout.metadata(record)
    lines = [] if record.clean else [f"thin_check -q {shlex.quote(str(meta.path))}"]
    (data_lines, data_place), (meta_lines, meta_place) = data.attach_plan(), meta.attach_plan()
    lines += [*data_lines, *meta_lines]
    table = pool_table(data.size(), data_place, meta_place, record.block_size)
    lines.append(f'dmsetup create {pool.name} --uuid {pool.uuid} --table "{table.target()}"')
    return lines


def pool_extend(store: Store, data_size: int | None, metadata_size: int | None) -> list[str]:
    """Longer files, loops that notice, and the pool's table anew. Raises what extending does."""
    record = store.lifecycle.require_growth(store.ledger.store(), data_size, metadata_size)
    layout = store.layout
    lines: list[str] = []
    for backing, target in (
        (layout.data(record), record.data_target),
        (layout.metadata(record), record.metadata_target),
    ):
        if target is not None:
            lines += backing.grow_plan(target)
    if record.data_target is None and record.metadata_target is None:
        return ["# the pool has this size already"]
    pool = store.lifecycle.pool(record)
    now = pool.table()
    table = pool_table(record.data_target or now.size, now.data_device, now.metadata_device, record.block_size)
    return [*lines, _dmsetup(load_arguments(pool.name, [table.target()])), f"dmsetup resume {pool.name}"]


def pool_deactivate(store: Store) -> list[str]:
    """Every device of the store, the pool last. Raises InUse for a volume that is mounted or open."""
    record = store.ledger.store()
    active = [view for view in report.volumes(store) if view.device]
    for view in active:
        if view.open_count:
            who = holders.describe(Path(str(view.device)).stat().st_rdev) or "something in the kernel"
            raise InUse(f"the {view.kind} {view.name} is in use by {who}", hint="unmount it, or stop that, first")
    lines = [_remove(record, view.device_id) for view in active]
    lines += [
        f"umount {shlex.quote(entry.target)}"
        for entry in mount.under(store.layout.root)
        if entry.target != str(store.layout.root)
    ]
    if record.pool:
        return lines
    pool = store.lifecycle.pool(record)
    if pool.info() is not None:
        lines.append(f"dmsetup remove {pool.name}")
    for backing in (store.layout.data(record), store.layout.metadata(record)):
        lines += backing.detach_plan()
    return lines or ["# the pool is down already"]


def pool_destroy(store: Store) -> list[str]:
    """Taking the pool down, and what is removed then."""
    record, layout = store.ledger.store(), store.layout
    lines = [line for line in pool_deactivate(store) if not line.startswith("#")]
    files = [layout.ledger, layout.lock]
    if record.pool:
        lines += [f"dmsetup message {record.pool} 0 'delete {volume.device_id}'" for volume in store.ledger.volumes()]
        if generation := store.lifecycle.status(record).transaction_id:
            lines.append(f"dmsetup message {record.pool} 0 'set_transaction_id {generation} 0'")
    else:
        data, meta = layout.data(record), layout.metadata(record)
        files = [*(backing.path for backing in (data, meta) if backing.is_file), *files]
        if not meta.is_file:
            lines.append(f"dd if=/dev/zero of={shlex.quote(str(meta.path))} bs=4096 count=1 conv=fsync")
    return [*lines, _shell("rm", *files), _shell("rm", "--dir", layout.mounts, layout.root)]


def image_import(store: Store, name: str, source: str, size: int | None) -> list[str]:
    """A base if there is none yet, a snapshot of it, and the content. Raises what can be known beforehand."""
    from dmthin.layers.source import open_source

    check_name(name, Kind.IMAGE)
    store.ledger.require_free(name)
    size = size or store.options.base_size
    kind, arguments = store.options.file_system, store.options.mkfs_arguments
    kind.require_size(size)
    with open_source(source):
        pass
    record, number = store.ledger.store(), _next_id(store)
    lines = [_LEDGER, *_activation(store)]
    base = store.ledger.find(base_name(kind, size, arguments))
    if base is None:
        lines += [
            _message(record, f"create_thin {number}"),
            _create(record, number, size),
            _shell(*kind.make_command(_node(record, number), arguments)),
            _remove(record, number),
        ]
        number += 1
    lines.append(_message(record, f"create_snap {number} {base.device_id if base else number - 1}"))
    lines.append(_create(record, number, size))
    place = store.layout.work_point(number)
    lines += _mounting(store, kind, _node(record, number), place)
    if source == "-" or not Path(source).is_dir():
        archive = ("-",) if source == "-" else (source,)
        lines.append(
            _shell("tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", place, "-f", *archive)
        )
    else:
        lines.append(_shell("cp", "-a", f"{source}/.", place))
    return [*lines, _shell("umount", place), _remove(record, number)]


def container_create(store: Store, image: str, name: str, size: int | None) -> list[str]:
    """A snapshot, its device, and a larger file system if asked. Raises what creating does."""
    check_name(name, Kind.CONTAINER)
    parent = store.ledger.ready(image, Kind.IMAGE)
    store.ledger.require_free(name)
    if size is not None and size < parent.size:
        raise InvalidValue(
            f"size {format_exact(size)} is less than the {format_exact(parent.size)} of the {parent.title}",
            hint="a volume is never smaller than what it was made from",
        )
    record, number, size = store.ledger.store(), _next_id(store), size or parent.size
    lines = [_LEDGER, *_activation(store), *_snapshot(store, parent, number), _create(record, number, size)]
    if size > parent.size:
        place = store.layout.work_point(number)
        kind, node = filesystem.by_name(parent.file_system), _node(record, number)
        lines += [
            *_mounting(store, kind, node, place),
            _shell(*kind.grow_command(node, place)),
            _shell("umount", place),
        ]
    return lines


def container_mount(store: Store, name: str, directory: Path | None) -> list[str]:
    """The device if need be, and the mount."""
    view, record = _container(store, name), store.ledger.store()
    place = directory.absolute().resolve() if directory else store.layout.mount_point(name)
    if str(place) in view.mounts:
        return [f"# {name} is mounted there already"]
    if mount.at(place):
        raise InUse(f"something else is mounted at {place}", hint="choose another folder")
    lines = _activation(store)
    if view.device is None:
        lines.append(_create(record, view.device_id, view.size))
    node = view.device or _node(record, view.device_id)
    return [*lines, *_mounting(store, filesystem.by_name(view.file_system), node, place)]


def container_unmount(store: Store, name: str, *, force: bool) -> list[str]:
    """The mounts and the device."""
    view, record = _container(store, name), store.ledger.store()
    if view.device is None:
        return [f"# {name} is not mounted"]
    lazily = ("--lazy",) if force else ()
    deferred = ("--deferred",) if store.options.deferred_removal else ()
    lines = [_shell("umount", *lazily, place) for place in reversed(view.mounts)]
    return [*lines, _shell("dmsetup", "remove", *deferred, record.device_name(view.device_id))]


def container_resize(store: Store, name: str, size: int) -> list[str]:
    """A longer device and a larger file system. Raises InvalidValue for less than now."""
    view, record = _container(store, name), store.ledger.store()
    if size < view.size:
        raise InvalidValue(
            f"the container {name} has {format_exact(view.size)} and cannot shrink to {format_exact(size)}",
            hint="a volume only grows",
        )
    lines = [_LEDGER, *_activation(store)]
    device, kind = record.device_name(view.device_id), filesystem.by_name(view.file_system)
    if view.device is None:
        lines.append(_create(record, view.device_id, size))
    else:
        table = _table(record, view.device_id, size).target()
        lines += [_dmsetup(load_arguments(device, [table])), f"dmsetup resume {device}"]
    node = view.device or _node(record, view.device_id)
    if view.mounts:
        return [*lines, _shell(*kind.grow_command(node, Path(view.mounts[-1])))]
    place = store.layout.work_point(view.device_id)
    lines += [*_mounting(store, kind, node, place), _shell(*kind.grow_command(node, place)), _shell("umount", place)]
    return [*lines, f"dmsetup remove {device}"]


def container_commit(store: Store, name: str, image: str) -> list[str]:
    """A snapshot of the container, which stands still meanwhile."""
    check_name(image, Kind.IMAGE)
    source = store.ledger.ready(name, Kind.CONTAINER)
    store.ledger.require_free(image)
    return [_LEDGER, *_activation(store), *_snapshot(store, source, _next_id(store))]


def container_remove(store: Store, name: str, *, force: bool) -> list[str]:
    """Its blocks, its device and its id. Raises InUse while it is mounted or open; `force` cannot be shown then."""
    view = _container(store, name)
    if view.open_count:
        if force:
            raise InvalidValue(
                f"the container {name} is in use, and when it goes depends on its last user",
                hint="unmount it first, or run this without --dry-run",
            )
        where = f"mounted at {view.mounts[0]}" if view.mounts else "in use"
        raise InUse(f"the container {name} is {where}", hint=f"run: dmthin container unmount {name}, or give --force")
    return _removal(store, view)


def image_remove(store: Store, name: str) -> list[str]:
    """Its blocks and its id. Raises InUse for one that has children."""
    image = store.ledger.ready(name, Kind.IMAGE)
    store.ledger.require_childless(image)
    return _removal(store, report.volume(store, name))


def _removal(store: Store, view: VolumeView) -> list[str]:
    record, lines = store.ledger.store(), [_LEDGER, *_activation(store)]
    if store.options.discard:
        if view.device is None:
            lines.append(_create(record, view.device_id, view.size))
        lines.append(_shell("blkdiscard", view.device or _node(record, view.device_id)))
    if store.options.discard or view.device:
        lines.append(_remove(record, view.device_id))
    return [*lines, _message(record, f"delete {view.device_id}")]


def _activation(store: Store) -> list[str]:
    return [line for line in pool_activate(store) if not line.startswith("#")]


def _container(store: Store, name: str) -> VolumeView:
    store.ledger.ready(name, Kind.CONTAINER)
    return report.volume(store, name)


def _next_id(store: Store) -> int:
    """A device id that is free, commonly the one that would be taken."""
    taken = [volume.device_id for volume in store.ledger.volumes()]
    return (max(taken, default=-1) + 1) & MAX_DEVICE_ID


def _snapshot(store: Store, origin: Volume, number: int) -> list[str]:
    """The message, between a suspend and a resume if the origin has a device."""
    record = store.ledger.store()
    message = _message(record, f"create_snap {number} {origin.device_id}")
    if store.volumes.info(origin) is None:
        return [message]
    device = record.device_name(origin.device_id)
    return [f"dmsetup suspend {device}", message, f"dmsetup resume {device}"]


def _mounting(store: Store, kind: FileSystem, node: str, place: Path) -> list[str]:
    options = filesystem.join_options(kind.mount_options, store.options.mount_options)
    with_options = ("-o", options) if options else ()
    return [_shell("mkdir", "-p", place), _shell("mount", "-t", kind.name, *with_options, node, place)]


def _table(record: StoreRecord, number: int, size: int) -> ThinTable:
    return ThinTable(size, f"/dev/mapper/{record.pool_name}", number)


def _create(record: StoreRecord, number: int, size: int) -> str:
    table = [_table(record, number, size).target()]
    return _dmsetup(create_arguments(record.device_name(number), record.device_uuid(number), table))


def _remove(record: StoreRecord, number: int) -> str:
    return f"dmsetup remove {record.device_name(number)}"


def _node(record: StoreRecord, number: int) -> str:
    return f"/dev/mapper/{record.device_name(number)}"


def _message(record: StoreRecord, text: str) -> str:
    return f"dmsetup message {record.pool_name} 0 {shlex.quote(text)}"


def _dmsetup(arguments: Iterable[str]) -> str:
    return _shell("dmsetup", *arguments)


def _shell(*words: str | Path) -> str:
    return shlex.join(str(word) for word in words)
