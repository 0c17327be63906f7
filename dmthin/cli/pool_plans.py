"""Dry runs of the pool's verbs: checked as the verbs check, printed as commands."""

import shlex

from dmthin.cli.plan_lines import dmsetup, message, shell
from dmthin.errors import Unavailable
from dmthin.kernel import mount
from dmthin.kernel.dmsetup import load_arguments
from dmthin.store.lifecycle.activation import pool_table
from dmthin.store.state import schema
from dmthin.store.store import Store


def activate(store: Store) -> list[str]:
    """Return loop devices and the pool's device, as far as they are not there. Raises what activation does."""
    lines = activating(store)
    return lines or ["# the pool is active already"]


def activating(store: Store) -> list[str]:
    """Return what `activate` does; empty if the pool is active."""
    record, layout = store.ledger.store(), store.layout
    pool = store.lifecycle.activation.pool(record)
    store.lifecycle.activation.require_own_devices(record)
    if pool.is_active():
        return []
    if record.pool:
        raise Unavailable(f"the pool {record.pool} is not active", hint="activate it with the tool that made it")
    data, meta = layout.data(record), layout.metadata(record)
    lines = [] if record.clean else [f"thin_check -q {shlex.quote(str(meta.path))}"]
    (data_lines, data_place), (meta_lines, meta_place) = data.attach_plan(), meta.attach_plan()
    # A file is as long as it was made, by these lines too; of a device the pool has what the ledger says.
    length = data.size() if data.is_file else record.data_size
    table = pool_table(length, data_place, meta_place, record.block_size)
    line = f'dmsetup create {pool.name} --uuid {pool.uuid} --table "{table.target()}"'
    return [*lines, *data_lines, *meta_lines, line]


def extend(store: Store, data_size: int | None, metadata_size: int | None) -> list[str]:
    """Return longer files, loop devices that notice, and the pool's new table. Raises what extending does."""
    planned, layout = store.pool.plan_extend(data_size, metadata_size), store.layout
    lines: list[str] = []
    for backing, target in (
        (layout.data(planned), planned.data_target),
        (layout.metadata(planned), planned.metadata_target),
    ):
        if target is not None:
            lines += backing.grow_plan(target)
    if planned.data_target is None and planned.metadata_target is None:
        return ["# the pool has this size already"]
    pool = store.lifecycle.activation.pool(planned)
    now = pool.table()
    tables = [now] if planned.metadata_target is not None else []  # as `PoolGrowth.finish`, which says why
    if planned.data_target is not None:
        tables.append(pool_table(planned.data_target, now.data_device, now.metadata_device, planned.block_size))
    for table in tables:
        lines += [dmsetup(load_arguments(pool.name, [table.target()])), f"dmsetup resume {pool.name}"]
    return lines


def deactivate(store: Store) -> list[str]:
    """Return the removal of every device of the store, the pool last. Raises what deactivation does."""
    return deactivating(store) or ["# the pool is down already"]


def deactivating(store: Store) -> list[str]:
    """Return what `deactivate` does; empty if the pool is down."""
    record, activation = store.ledger.store(), store.lifecycle.activation
    activation.require_own_devices(record)
    lines = [shell("dmsetup", "remove", name) for name in activation.plan_deactivation(record)]
    root = str(store.layout.root)
    lines += [shell("umount", entry.target) for entry in mount.under(store.layout.root) if entry.target != root]
    if record.pool:
        return lines
    pool = activation.pool(record)
    if pool.info() is not None:
        lines.append(f"dmsetup remove {pool.name}")
    for backing in (store.layout.data(record), store.layout.metadata(record)):
        lines += backing.detach_plan()
    return lines


def destroy(store: Store) -> list[str]:
    """Return the removal of the pool, the store's files and its folder. Raises what destroying does."""
    record, layout = store.ledger.store(), store.layout
    store.lifecycle.removal.require_possible(record)
    lines = deactivating(store)
    files = [*schema.files(layout.ledger), layout.lock]
    if record.pool:
        lines += [message(record, f"delete {volume.device_id}") for volume in store.ledger.volumes()]
        if generation := store.lifecycle.activation.pool(record).status().transaction_id:
            lines.append(message(record, f"set_transaction_id {generation} 0"))
    else:
        data, meta = layout.data(record), layout.metadata(record)
        files = [*(backing.path for backing in (data, meta) if backing.is_file), *files]
        if not meta.is_file:
            lines.append(f"dd if=/dev/zero of={shlex.quote(str(meta.path))} bs=4096 count=1 conv=fsync")
    folders = [folder for folder in (layout.mounts, layout.work) if folder.exists()]
    return [*lines, shell("rm", "-f", *files), shell("rm", "--dir", *folders, layout.root)]
