"""The verbs of the pool."""

from contextlib import suppress
from typing import TYPE_CHECKING

from dmthin.cli import status as sheet
from dmthin.cli.call import Call
from dmthin.cli.sizes import SizeRequest, human, parse_request
from dmthin.errors import AlreadyExists, InvalidValue, NoMetadataSpace, Unavailable

if TYPE_CHECKING:
    from dmthin.store.store import Store


def create(call: Call) -> None:
    """Make a store and its pool."""
    from dmthin.store.create import create_store, plan_store

    options = call.options
    force: bool = call.arguments.force
    if options.dry_run:
        plan = plan_store(options.root, options.store_options, force=force)
        call.output.plan(plan.commands() or [f"# the pool {plan.record.pool} is taken as it is"])
        return
    if force:
        _confirm_overwriting(call)
    with create_store(options.root, options.store_options, force=force) as store:
        report = store.pool.status()
        sizes = f"{human(report.data_size)} of data, {human(report.metadata_size)} of metadata"
        call.output.say(f"made the store {store.layout.root}: {sizes}")
        if call.output.as_json:
            call.output.document({"pool": sheet.as_json(str(store.layout.root), report)})


def status(call: Call) -> None:
    """How the pool is; what needs attention goes to standard error."""
    from dmthin.store.report import pool_warnings

    with call.store() as store:
        root, report = str(store.layout.root), store.pool.status()
    warnings = pool_warnings(report)
    if call.output.as_json:
        call.output.document({"pool": sheet.as_json(root, report), "warnings": warnings})
        return
    call.output.data(sheet.as_text(root, report, exact=call.arguments.exact))
    for warning in warnings:
        call.output.warn(warning)


def extend(call: Call) -> None:
    """Let data, metadata or both grow."""
    data = _request(call.arguments.data_size, "--data-size")
    meta = _request(call.arguments.metadata_size, "--metadata-size")
    with call.store() as store:
        _require_something_to_extend(store, data, meta)
        if not call.options.dry_run:
            with suppress(NoMetadataSpace):  # which this may be about to mend
                store.pool.activate()
        before = store.pool.status()
        if not before.active:
            raise Unavailable("the pool is not active, so its sizes are not known", hint="run: dmthin pool activate")
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
            call.output.say(f"{what}: {human(was)}" + (f" -> {human(now)}" if now != was else " as before"))
        if call.output.as_json:
            call.output.document({"pool": sheet.as_json(str(store.layout.root), after)})


def trim(call: Call) -> None:
    """Give free space back to the host; prints the bytes that came back."""
    from dmthin.cli.progress import line_on_terminal

    if call.options.dry_run:
        raise InvalidValue(
            "pool trim cannot be shown as commands: what is free is known only while the pool stands still",
            hint="run it without --dry-run; it removes no data",
        )
    with call.store() as store, line_on_terminal(call.output) as line:

        def progress(done: int, total: int) -> None:
            if line is not None:
                line.show(lambda: f"trimmed {100 * done // max(total, 1)}% of the pool")

        back = store.pool.trim(progress)
        known = store.pool.status().data_allocated is not None
    call.output.say(f"the host got {human(back)} back" if known else "the free blocks of the pool are discarded")
    if call.output.as_json:
        call.output.document({"reclaimed": back if known else None})


def activate(call: Call) -> None:
    """Bring the pool up."""
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.activate(store))
            return
        was_active = store.pool.status().active
        store.pool.activate()
        call.output.say("the pool is active" + (" already" if was_active else ""))
        if call.output.as_json:
            call.output.document({"pool": sheet.as_json(str(store.layout.root), store.pool.status())})


def deactivate(call: Call) -> None:
    """Take the pool down cleanly."""
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.deactivate(store))
            return
        was_active = store.pool.status().active
        store.pool.deactivate()
        call.output.say("the pool is down" if was_active else "the pool was down already")
        if call.output.as_json:
            call.output.document({"pool": sheet.as_json(str(store.layout.root), store.pool.status())})


def destroy(call: Call) -> None:
    """Remove the pool, every volume and the store's files, once that is confirmed."""
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import pool_plans

            call.output.plan(pool_plans.destroy(store))
            return
        root = str(store.layout.root)
        what_goes = sheet.what_goes(root, store.pool.status(), store.ledger.volumes())
        call.confirm(what_goes, f"To destroy this, type {root} or yes:", accepted=(root, "yes"))
        store.pool.destroy()
    call.output.say(f"destroyed the store {root}")
    if call.output.as_json:
        call.output.document({"destroyed": root})


def _confirm_overwriting(call: Call) -> None:
    """Ask before a device that carries data is overwritten; nothing to ask where none does."""
    from dmthin.store.create import plan_store

    options = call.options
    try:
        plan_store(options.root, options.store_options)
    except AlreadyExists as objection:
        plan_store(options.root, options.store_options, force=True)
        call.confirm([f"{objection.message}, and would be overwritten"], "To go on, type yes:", accepted=("yes",))


def _request(text: str | None, what: str) -> SizeRequest | None:
    return parse_request(text, what) if text else None


def _require_something_to_extend(store: "Store", data: SizeRequest | None, meta: SizeRequest | None) -> None:
    """Sparse files do not grow by themselves, so one of the sizes is needed there."""
    record = store.ledger.store()
    on_files = bool(record.data) and store.layout.data(record).is_file and store.layout.metadata(record).is_file
    if on_files and data is None and meta is None:
        raise InvalidValue("there is nothing to extend", hint="give --data-size, --metadata-size or both")
