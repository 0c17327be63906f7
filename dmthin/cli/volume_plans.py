"""Dry runs of the verbs of images and containers: each prints the plan that the verb itself carries out.

The lines do what dmthin does to the kernel. They do not write its ledger, so a volume that is made by hand is not one
of the store's: a comment says so.
"""

from pathlib import Path

from dmthin.cli import plan_lines
from dmthin.cli.plan_lines import LEDGER, dmsetup, message, shell
from dmthin.cli.pool_plans import activating
from dmthin.errors import InvalidValue
from dmthin.kernel import mount
from dmthin.kernel.dmsetup import load_arguments
from dmthin.pool import filesystem
from dmthin.store.state.model import NewVolume, Volume
from dmthin.store.store import Store


def image_import(store: Store, name: str, source: str, size: int | None) -> list[str]:
    """Return a base if there is none yet, a snapshot of it, and its content. Reads an archive to its end.

    Raises what importing does.
    """
    plan = store.images.plan_import(name, size)
    store.images.check_source(plan, source)
    _require_room(store)
    record, number = store.ledger.store(), store.ledger.next_device_id()
    lines = [LEDGER, *activating(store)]
    if plan.base is None:
        base, device = number, plan_lines.node(record, number)
        lines += [
            message(record, f"create_thin {base}"),
            plan_lines.create(record, base, plan.size),
            shell(*plan.file_system.make_command(device, plan.mkfs_arguments)),
            plan_lines.remove(record, base),
        ]
        number += 1
    else:
        base = plan.base.device_id
    place = store.layout.work_point(number)
    lines += [message(record, f"create_snap {number} {base}"), plan_lines.create(record, number, plan.size)]
    lines += _mounting(store, plan.new_base, plan_lines.node(record, number), place)
    if source != "-" and Path(source).is_dir():
        lines.append(shell("cp", "-a", f"{source}/.", place))
    else:
        lines.append(shell("tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", place, "-f", source))
    return [*lines, shell("umount", place), plan_lines.remove(record, number)]


def image_remove(store: Store, name: str) -> list[str]:
    """Return the removal of its blocks and its device id. Raises what removing does."""
    lines = [LEDGER, *activating(store)]
    return [*lines, *(line for volume in store.images.plan_remove(name) for line in _removal(store, volume))]


def container_create(store: Store, image: str, name: str, size: int | None) -> list[str]:
    """Return a snapshot, its device, and a larger file system if that was asked for. Raises what creating does."""
    new = store.containers.plan_create(image, name, size)
    _require_room(store)
    parent = new.parent
    assert parent is not None  # a container is made of an image
    record, number = store.ledger.store(), store.ledger.next_device_id()
    lines = [LEDGER, *activating(store), *_snapshot(store, parent, number)]
    lines.append(plan_lines.create(record, number, new.size))
    if new.size > parent.size:
        place, device = store.layout.work_point(number), plan_lines.node(record, number)
        lines += _growing(store, new, device, place)
    return lines


def container_mount(store: Store, name: str, directory: Path | None) -> list[str]:
    """Return the device if there is none, and the mount. Raises what mounting does."""
    plan = store.containers.plan_mount(name, directory)
    if plan.is_mounted:
        return [f"# {name} is mounted there already"]
    container, record = plan.container, store.ledger.store()
    info = store.volumes.info(container)
    lines = activating(store)
    if info is None:
        lines.append(plan_lines.create(record, container.device_id, container.size, read_only=container.read_only))
    device = info.node if info else plan_lines.node(record, container.device_id)
    return [*lines, *_mounting(store, container, device, plan.place)]


def container_unmount(store: Store, name: str, *, force: bool) -> list[str]:
    """Return the removal of the mounts and the device. Raises NotFound."""
    container, record = store.containers.get(name), store.ledger.store()
    info = store.volumes.info(container)
    if info is None:
        return [f"# {name} is not mounted"]
    lazily = ("--lazy",) if force else ()
    deferred = ("--deferred",) if store.options.deferred_removal else ()
    lines = [shell("umount", *lazily, entry.target) for entry in reversed(mount.of_device(info.dev))]
    return [*lines, shell("dmsetup", "remove", *deferred, record.device_name(container.device_id))]


def container_resize(store: Store, name: str, size: int) -> list[str]:
    """Return a longer device and a larger file system. Raises what resizing does."""
    larger, record = store.containers.plan_resize(name, size), store.ledger.store()
    if (thin := store.lifecycle.activation.pool(record)).is_active():
        thin.require_data_space(0)
    info, kind = store.volumes.info(larger), filesystem.by_name(larger.file_system)
    lines = [LEDGER, *activating(store)]
    device = record.device_name(larger.device_id)
    if info is None:
        lines.append(plan_lines.create(record, larger.device_id, larger.size))
    else:
        table = plan_lines.thin_table(record, larger.device_id, larger.size).target()
        lines += [dmsetup(load_arguments(device, [table])), f"dmsetup resume {device}"]
    node = info.node if info else plan_lines.node(record, larger.device_id)
    if info and (places := mount.of_device(info.dev)):
        return [*lines, shell(*kind.grow_command(node, Path(places[-1].target)))]
    place = store.layout.work_point(larger.device_id)
    return [*lines, *_growing(store, larger, node, place), f"dmsetup remove {device}"]


def container_commit(store: Store, name: str, image: str) -> list[str]:
    """Return a snapshot of the container, which is suspended meanwhile if it is active. Raises what committing does."""
    plan = store.images.plan_commit(name, image)
    _require_room(store)
    return [LEDGER, *activating(store), *_snapshot(store, plan.origin, store.ledger.next_device_id())]


def container_remove(store: Store, name: str, *, force: bool) -> list[str]:
    """Return the removal of its blocks, its device and its device id. Raises what removing does.

    With `force`, raises InvalidValue for a container in use: its last user decides when the rest goes.
    """
    container = store.containers.get(name)
    info = store.volumes.info(container)
    if force and info and info.open_count:
        raise InvalidValue(
            f"the container {name} is in use, and when it goes depends on its last user",
            hint="unmount it first, or run this without --dry-run",
        )
    return [LEDGER, *activating(store), *_removal(store, store.containers.plan_remove(name))]


def _removal(store: Store, volume: Volume) -> list[str]:
    record, lines = store.ledger.store(), list[str]()
    info = store.volumes.info(volume)
    discard = store.options.discard and not volume.read_only
    if discard:
        if info is None:
            lines.append(plan_lines.create(record, volume.device_id, volume.size))
        lines.append(shell("blkdiscard", info.node if info else plan_lines.node(record, volume.device_id)))
    if discard or info:
        lines.append(plan_lines.remove(record, volume.device_id))
    return [*lines, message(record, f"delete {volume.device_id}")]


def _require_room(store: Store) -> None:
    """Check the room for a new volume as its creation does, unless the pool is down and cannot tell."""
    record = store.ledger.store()
    if (thin := store.lifecycle.activation.pool(record)).is_active():
        store.volumes.creation.require_room(thin, record)


def _snapshot(store: Store, origin: Volume, number: int) -> list[str]:
    info = store.volumes.info(origin)
    return plan_lines.snapshot(store.ledger.store(), number, origin, suspend=info is not None and info.in_use)


def _mounting(store: Store, volume: Volume | NewVolume, device: str, place: Path) -> list[str]:
    options = store.volumes.mounter.options(volume, place)
    with_options = ("-o", options) if options else ()
    return [shell("mkdir", "-p", place), shell("mount", "-t", volume.file_system, *with_options, device, place)]


def _growing(store: Store, volume: Volume | NewVolume, device: str, place: Path) -> list[str]:
    grow = shell(*filesystem.by_name(volume.file_system).grow_command(device, place))
    return [*_mounting(store, volume, device, place), grow, shell("umount", place)]
