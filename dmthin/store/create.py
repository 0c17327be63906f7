"""Creation of a store: checks first, then the record of the intent, then files, loop devices and the pool."""

import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dmthin.errors import (
    AlreadyExists,
    InvalidValue,
    NotFound,
)
from dmthin.kernel import block
from dmthin.kernel.devicemapper import UdevRules
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.os_errors import os_failure
from dmthin.pool.diskpart import divide
from dmthin.store import preflight
from dmthin.store.config.direct_lvm import DirectLvm
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions, as_texts, parse_pairs
from dmthin.store.lifecycle.activation import pool_table
from dmthin.store.lifecycle.lifecycle import PoolLifecycle
from dmthin.store.state import schema
from dmthin.store.state.files import DATA_FILE, METADATA_FILE
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks, make_lock_file
from dmthin.store.state.model import StoreRecord, StoreState, new_uuid
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background

_ATTEMPTS = 8


def create_store(
    root: Path, options: Iterable[str] = (), *, force: bool = False, background: Background | None = None
) -> Store:
    """Make a store in a folder, and its pool; return it open. All of it is made, or nothing.

    A block device that carries data, or a pool that is in use, is refused; `force` overwrites the device.
    `background` is for the Store.
    Raises AlreadyExists, InUse, InvalidValue, NoDataSpace, Unavailable (no dm-thin), NotPermitted.
    """
    _clear_unfinished(Layout.at(root))
    plan = plan_store(root, options, force=force)
    layout, made_root = plan.layout, not plan.layout.root.exists()
    _make_folder(layout.root)
    try:
        _make_under_lock(plan)
    except BaseException:
        if made_root:
            with suppress(OSError):
                layout.root.rmdir()
        raise
    return Store(layout.root, background=background)


def is_store(root: Path) -> bool:
    """Return whether there is a finished store. An unfinished one is cleared away by `create_store`."""
    path = Layout.at(root).ledger
    try:
        return Ledger(path).store().state is StoreState.READY
    except NotFound:
        return False


def ensure_store(root: Path, options: Iterable[str] = (), background: Background | None = None) -> Store:
    """Return the store in a folder, made if there is none. Raises what `create_store` and `Store` do."""
    options = tuple(options)
    if is_store(root):
        return Store(root, options, background=background)
    return create_store(root, options, background=background)


@dataclass(frozen=True, slots=True)
class Plan:
    """A store that can be made: everything that can be checked has been."""

    layout: Layout
    record: StoreRecord

    def commands(self) -> list[str]:
        """Return the steps as commands that an administrator can paste."""
        if self.record.pool:
            return []
        data, meta = self.layout.data(self.record), self.layout.metadata(self.record)
        lines = []
        for backing, size in ((data, self.record.data_target), (meta, self.record.metadata_target)):
            lines += backing.make_plan(size) if size is not None else []
        if not meta.is_file:
            lines.append(f"dd if=/dev/zero of={shlex.quote(str(meta.path))} bs=4096 count=1 conv=fsync")
        (data_lines, data_place), (meta_lines, meta_place) = data.attach_plan(), meta.attach_plan()
        length = self.record.data_target or data.size()
        table = pool_table(length, data_place, meta_place, self.record.block_size)
        name, uuid = self.record.pool_name, f"{self.record.uuid_prefix}-pool"
        lines += [*data_lines, *meta_lines]
        return [*lines, f'dmsetup create {name} --uuid {uuid} --table "{table.target()}"']


def plan_store(root: Path, options: Iterable[str] = (), *, force: bool = False) -> Plan:
    """Check all that a new store needs, and return it as a plan. Changes nothing. Raises what `create_store` does."""
    pairs = parse_pairs(options)
    chosen = StorageOptions.from_pairs(pairs)
    layout = Layout.at(root)
    preflight.require_kernel()
    schema.require_short(schema.unfinished(layout.ledger))
    _require_no_store(layout)
    preflight.require_room(layout.root)
    record = StoreRecord(
        uuid=new_uuid(),
        state=StoreState.MAKING,
        block_size=chosen.block_size,
        data="",
        metadata="",
        pool=chosen.thin_pool_device,
        options=as_texts(pairs),
        generation=0,
        clean=True,
    )
    if chosen.thin_pool_device:
        return Plan(layout, replace(record, block_size=preflight.require_empty_pool(chosen.thin_pool_device)))
    if chosen.direct:
        return Plan(layout, _on_one_disk(record, chosen.direct, force=force or chosen.direct.force))
    return Plan(layout, _on_two_places(record, chosen, layout, force=force))


def _on_one_disk(record: StoreRecord, disk: DirectLvm, *, force: bool) -> StoreRecord:
    """Return the record of a store that has a whole disk, which is divided."""
    preflight.require_blank_device(disk.device, force=force)
    parts = divide(block.size(disk.device), disk.data_percent, disk.metadata_percent, record.block_size)
    return replace(
        record,
        data=str(disk.device),
        metadata=str(disk.device),
        data_size=parts.data_size,
        metadata_size=parts.metadata_size,
        metadata_end=parts.metadata_end,
    )


def _on_two_places(record: StoreRecord, chosen: StorageOptions, layout: Layout, *, force: bool) -> StoreRecord:
    """Return the record of a store whose data and metadata are each a file of its own or a device.

    Raises InvalidValue (one device for both), AlreadyExists, InUse.
    """
    for device in filter(None, (chosen.data_device, chosen.metadata_device)):
        preflight.require_blank_device(device, force=force)
    record = replace(
        record,
        data=str(chosen.data_device or DATA_FILE),
        metadata=str(chosen.metadata_device or METADATA_FILE),
        data_target=None if chosen.data_device else chosen.data_size,
        metadata_target=None if chosen.metadata_device else chosen.metadata_size,
    )
    data, meta = layout.data(record), layout.metadata(record)
    if data.path == meta.path:
        raise InvalidValue("dm.datadev and dm.metadatadev are the same device", hint="give two devices")
    for backing in (data, meta):
        preflight.require_absent(backing)
    return record


def _make_under_lock(plan: Plan) -> None:
    """Make the store with the pool lock held exclusively. Raises AlreadyExists if another process was faster."""
    layout = plan.layout
    for _ in range(_ATTEMPTS):
        make_lock_file(layout.lock)
        try:
            with Locks(layout.lock).own_pool():
                if layout.ledger.exists():
                    raise AlreadyExists(f"{layout.root} has just become a store", hint="see: dmthin pool status")
                try:
                    _build(plan)
                except BaseException:
                    layout.lock.unlink(missing_ok=True)  # while it is held: a process that waits for it opens it again
                    raise
                return
        except NotFound:
            if layout.lock.exists() or layout.root.is_file():
                raise
            _make_folder(layout.root)  # another process has failed here and removed them
    raise AlreadyExists(f"{layout.root} is being made and unmade by others", hint="try again")


def _build(plan: Plan) -> None:
    """Record the intent and carry it out; undo it if that fails. The caller holds the pool lock exclusively."""
    layout = plan.layout
    schema.make(layout.ledger)
    ledger = Ledger(layout.ledger)
    lifecycle = _lifecycle(layout, ledger)
    try:
        with ledger.transaction("store begins"):
            ledger.save_store(plan.record)
        record = lifecycle.build(plan.record)
        with ledger.transaction("store made"):
            ledger.save_store(replace(record, state=StoreState.READY))
    except BaseException:
        lifecycle.removal.carry_out(plan.record)
        raise
    finally:
        ledger.close()


def _require_no_store(layout: Layout) -> None:
    """Raise AlreadyExists where there is a store, finished or not."""
    if not block.exists(layout.ledger):
        return
    with suppress(NotFound):
        if Ledger(layout.ledger).store().state is StoreState.READY:
            raise AlreadyExists(f"{layout.root} is a store already", hint="see: dmthin pool status")
    raise AlreadyExists(f"{layout.root} holds a store that was never finished", hint="pool create clears it away")


def _clear_unfinished(layout: Layout) -> None:
    """Remove a store whose creation or removal was interrupted; leave a finished one alone."""
    if not block.exists(layout.ledger):
        return
    make_lock_file(layout.lock)
    with Locks(layout.lock).own_pool():
        schema.clear_blank(layout.ledger)
        if not block.exists(layout.ledger):
            return
        ledger = Ledger(layout.ledger)
        try:
            record = ledger.store()
        except NotFound:
            ledger.remove()
            return
        if record.state is not StoreState.READY:
            _lifecycle(layout, ledger).removal.carry_out(record)


def _lifecycle(layout: Layout, ledger: Ledger) -> PoolLifecycle:
    return PoolLifecycle(layout, ledger, IoctlDeviceMapper(UdevRules.PRIVATE), Dmsetup())


def _make_folder(root: Path) -> None:
    """Make the store's folder for root alone. Raises AlreadyExists for a file, and what mkdir(2) gives."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
    except FileExistsError:
        raise AlreadyExists(f"{root} is not a folder", hint="choose another --root") from None
    except OSError as error:
        raise os_failure(error, f"make {root}") from None
