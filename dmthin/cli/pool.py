"""The verbs of the pool: create, status, extend, trim, activate, deactivate, destroy."""

from contextlib import suppress
from typing import TYPE_CHECKING

from dmthin.cli import pool_status
from dmthin.cli.call import Call
from dmthin.cli.owners import owners_of
from dmthin.cli.sizes import SizeRequest, human, parse_request
from dmthin.errors import AlreadyExists, InvalidValue, NoMetadataSpace, Unavailable

if TYPE_CHECKING:
    from dmthin.store.store import Store


def create(call: Call) -> None:
    """Create a store and its pool."""
    from dmthin.store.create import create_store, plan_store

    options = call.options
    force: bool = call.arguments.force
    if options.dry_run:
        plan = plan_store(options.root, options.store_options, force=force)
        call.output.plan(plan.commands() or [f"# the pool {plan.record.pool} is used as it is"])
        return
    if force:
        _confirm_overwriting(call)
    with create_store(options.root, options.store_options, force=force) as store:
        report = store.pool.status()
        sizes = f"{human(report.data_size)} of data, {human(report.metadata_size)} of metadata"
        root = str(store.layout.root)
        call.output.changed(f"created store {root}: {sizes}", {"pool": pool_status.as_json(root, report)})


def status(call: Call) -> None:
    """Show the status of the pool, with warnings on standard error."""
    from dmthin.store.report import pool_warnings

    with call.store() as store:
        root, report = str(store.layout.root), store.pool.status()
    warnings = pool_warnings(report)
    if call.output.as_json:
        call.output.document({"pool": pool_status.as_json(root, report), "warnings": warnings})
        return
    call.output.data(pool_status.as_text(root, report, exact=call.arguments.exact))
    for warning in warnings:
        call.output.warn(warning)


def extend(call: Call) -> None:
    """Extend data, metadata or both. Raise InvalidValue, Unavailable, and what the extension raises."""
    data = _request(call.arguments.data_size, "--data-size")
    meta = _request(call.arguments.metadata_size, "--metadata-size")
    with call.store() as store:
        _require_something_to_extend(store, data, meta)
        if not call.options.dry_run:
            with suppress(NoMetadataSpace):  # extending the metadata is the remedy
                store.pool.activate()
        before = store.pool.status()
        if not before.active:
            raise Unavailable("the pool is inactive, so its sizes are unknown", hint="run: dmthin pool activate")
        data_size = data.resolve(before.data_size) if data else None
        metadata_size = meta.resolve(before.metadata_size) if meta else None
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.extend(store, data_size, metadata_size))
            return
        after = store.pool.extend(data_size=data_size, metadata_size=metadata_size)
        for what, was, now in (
            ("data", before.data_size, after.data_size),
            ("metadata", before.metadata_size, after.metadata_size),
        ):
            call.output.say(f"{what}: {human(was)}" + (f" -> {human(now)}" if now != was else " (unchanged)"))
        call.output.made = "extended the pool"
        if call.output.as_json:
            call.output.document({"pool": pool_status.as_json(str(store.layout.root), after)})


def trim(call: Call) -> None:
    """Discard the pool's free blocks, to return their space to the host; print the bytes reclaimed.

    Raise InvalidValue for a dry run, and what `Pool.trim` raises.
    """
    from dmthin.cli.progress import line_on_terminal

    if call.options.dry_run:
        raise InvalidValue(
            "pool trim cannot be shown as commands: the free blocks are known only while the pool is suspended",
            hint="run it without --dry-run; it does not change any data",
        )
    with call.store() as store, line_on_terminal(call.output) as line:

        def progress(done: int, total: int) -> None:
            if line is not None:
                line.show(lambda: f"trimmed {100 * done // max(total, 1)}% of the pool")

        reclaimed = store.pool.trim(progress)
        known = store.pool.status().data_allocated is not None
    text = f"reclaimed {human(reclaimed)}" if known else "discarded the free blocks of the pool"
    call.output.changed(text, {"reclaimed": reclaimed if known else None})


def activate(call: Call) -> None:
    """Activate the pool."""
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.activate(store))
            return
        was_active = store.pool.status().active
        store.pool.activate()
        text = "the pool is already active" if was_active else "activated the pool"
        call.output.changed(text, {"pool": pool_status.as_json(str(store.layout.root), store.pool.status())})


def deactivate(call: Call) -> None:
    """Deactivate all volumes and the pool."""
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.deactivate(store))
            return
        was_active = store.pool.status().active
        store.pool.deactivate()
        text = "deactivated the pool" if was_active else "the pool is already inactive"
        call.output.changed(text, {"pool": pool_status.as_json(str(store.layout.root), store.pool.status())})


def destroy(call: Call) -> None:
    """Remove all volumes, the pool and the store's files, after confirmation.

    Raise InUse if an engine has volumes there, unless forced.
    """
    with call.store() as store:
        if not call.arguments.force:
            owners_of(store).require_none_of(store.ledger.volumes())
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.destroy(store))
            return
        root = str(store.layout.root)
        losses = pool_status.losses(root, store.pool.status(), store.ledger.volumes())
        call.confirm(losses, f"To destroy this, type {root} or yes:", accepted=(root, "yes"))
        store.pool.destroy()
    call.output.changed(f"destroyed store {root}", {"destroyed": root})


def _confirm_overwriting(call: Call) -> None:
    """Ask for confirmation if a device contains data that would be overwritten. Raise what `Call.confirm` raises."""
    from dmthin.store.create import plan_store

    options = call.options
    try:
        plan_store(options.root, options.store_options)
    except AlreadyExists as objection:
        plan_store(options.root, options.store_options, force=True)
        call.confirm([f"{objection.message}, which would be overwritten"], "To continue, type yes:", accepted=("yes",))


def _request(text: str | None, what: str) -> SizeRequest | None:
    return parse_request(text, what) if text else None


def _require_something_to_extend(store: "Store", data: SizeRequest | None, meta: SizeRequest | None) -> None:
    """Raise InvalidValue if no size is requested and the pool is on sparse files: only disks are enlarged by others."""
    record = store.ledger.store()
    on_files = bool(record.data) and store.layout.data(record).is_file and store.layout.metadata(record).is_file
    if on_files and data is None and meta is None:
        raise InvalidValue("nothing to extend", hint="pass --data-size, --metadata-size or both")
