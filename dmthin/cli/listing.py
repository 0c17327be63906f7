"""The verbs that show volumes: list, tree, du, inspect. None of them changes a volume."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dmthin.cli.call import Call
from dmthin.cli.fields import OWNER_FIELDS, USAGE_FIELDS, VOLUME_FIELDS, Field, Format, as_json, shown
from dmthin.cli.owners import all_meant, owners_of
from dmthin.cli.table import Table, aligned, describe, table_from_arguments
from dmthin.store.owners import NO_OWNERS, Owners

if TYPE_CHECKING:
    from dmthin.store.report import TreeNode, VolumeDetail
    from dmthin.store.state.model import Kind
    from dmthin.store.store import Store

T = TypeVar("T")
_ALL = "name,kind,size,parent,file_system,state,created"
_IMAGES = "name,size,parent,file_system,state,created"
_CONTAINERS = "name,size,mapped,parent,file_system,state,mounts,created"
_USAGE = "name,kind,size,mapped,exclusive,shared"
_BRANCHES = ("├─ ", "└─ ", "│  ", "   ")
_ASCII_BRANCHES = ("|- ", "`- ", "|  ", "   ")


def list_all(call: Call) -> None:
    """List all volumes."""
    _list(call, _ALL)


def images(call: Call) -> None:
    """List images."""
    from dmthin.store.state.model import Kind

    _list(call, _IMAGES, Kind.IMAGE)


def containers(call: Call) -> None:
    """List containers."""
    from dmthin.store.state.model import Kind

    _list(call, _CONTAINERS, Kind.CONTAINER)


def tree(call: Call) -> None:
    """Show volumes as a tree of snapshots."""
    from dmthin.store import report

    with call.store() as store:
        owners = owners_of(store)
        nodes = report.tree(store, owners=owners)
    if call.output.as_json:
        call.output.document({"volumes": [_node_json(node) for node in nodes]})
        return
    branches = _BRANCHES if _speaks_utf8() else _ASCII_BRANCHES
    brief = _is_brief(call)
    lines = list(_tree_lines(nodes, branches, exact=call.arguments.exact, brief=brief, named=bool(owners)))
    call.output.data(aligned(lines, (False, False, True, False)))


def du(call: Call) -> None:
    """Show the pool space that each volume uses."""
    if call.arguments.columns == "help":
        call.output.data(describe(USAGE_FIELDS))
        return
    table = _table(call, USAGE_FIELDS, _USAGE)
    from dmthin.store import report

    with call.store() as store:
        owners = _owners(call, store, USAGE_FIELDS, _USAGE)
        if owners:
            table = _table(call, USAGE_FIELDS, _USAGE, named=True)
        use = report.usage(store, owners=owners)
    rows = table.sorted(use.volumes)
    total = {"mapped": use.mapped, "exclusive": use.exclusive, "shared": use.shared}
    if call.output.as_json:
        fields = table.columns if table.chosen else USAGE_FIELDS
        call.output.document({"volumes": [as_json(row, fields) for row in rows], "total": total})
    else:
        # The total counts each block once, so it is less than the sum of the lines above.
        call.output.data(table.text(rows, total={"name": "total", **total}))


def inspect(call: Call) -> None:
    """Show all details of some volumes: an array, like docker inspect; with --json, in an object."""
    from dmthin.store import report

    with call.store() as store:
        names, owners = all_meant(store, call.arguments.names)
        found = [_detail_json(detail) for detail in report.details(store, names, owners=owners)]
    if call.output.as_json:
        call.output.document({"volumes": found})
    else:
        import json

        call.output.data(json.dumps(found, indent=2) + "\n")


def _list(call: Call, default: str, *kinds: "Kind") -> None:
    if call.arguments.columns == "help":
        call.output.data(describe(VOLUME_FIELDS))
        return
    table = _table(call, VOLUME_FIELDS, default)
    from dmthin.store import report

    with call.store() as store:
        owners = _owners(call, store, VOLUME_FIELDS, default)
        if owners:
            table = _table(call, VOLUME_FIELDS, default, named=True)
        rows = table.sorted(report.volumes(store, *kinds, owners=owners))
    if call.output.as_json:
        fields = table.columns if table.chosen else VOLUME_FIELDS
        call.output.document({"volumes": [as_json(row, fields) for row in rows]})
    else:
        call.output.data(table.text(rows))


def _table(call: Call, fields: tuple[Field[T], ...], default: str, *, named: bool = False) -> Table[T]:
    """Return the table that the options ask for; with `named`, its default has an engine's names, but not for scripts.

    Raise InvalidValue for an unknown field.
    """
    if named and not call.arguments.tabs:
        default = default.replace("name,", "name,engine_name,", 1)
    return table_from_arguments(call.arguments, fields, default, brief=_is_brief(call))


def _owners(call: Call, store: "Store", fields: tuple[Field[T], ...], default: str) -> Owners:
    """Return the owners of the volumes; none if no field that is shown or sorted by needs them.

    dockerd keeps a few files for each layer and container: reading them takes most of the time of a list.
    """
    table = _table(call, fields, default, named=True)
    columns = table.columns if table.chosen or not call.output.as_json else fields
    needed = {field.name for field in (*columns, *(field for field, _ in table.sort))}
    return NO_OWNERS if needed.isdisjoint(OWNER_FIELDS) else owners_of(store)


def _is_brief(call: Call) -> bool:
    """Return whether to shorten ids in names: on a terminal, unless --no-trunc is given."""
    return sys.stdout is not None and sys.stdout.isatty() and not call.arguments.no_trunc


def _tree_lines(
    nodes: "Sequence[TreeNode]",
    branches: Sequence[str],
    *,
    exact: bool,
    brief: bool = False,
    named: bool = False,
    before: str | None = None,
) -> Iterator[list[str]]:
    """Yield name, kind, size and state of each volume, the name after the branches of the tree.

    With `brief`, ids in names have 12 digits; with `named`, what an engine calls the volume follows.
    """
    through, last, pass_by, nothing = branches
    for index, node in enumerate(nodes):
        ends = index + 1 == len(nodes)
        volume = node.volume
        lead = "" if before is None else before + (last if ends else through)
        size = shown(volume.size, Format.SIZE, exact=exact)
        line = [lead + shown(volume.name, Format.NAME, brief=brief), volume.kind, size, volume.state]
        engine_name = volume.owner.name if volume.owner else ""
        yield [*line, shown(engine_name, Format.NAME, brief=brief)] if named else line
        below = "" if before is None else before + (nothing if ends else pass_by)
        yield from _tree_lines(node.children, branches, exact=exact, brief=brief, named=named, before=below)


def _node_json(node: "TreeNode") -> dict[str, Any]:
    return {**as_json(node.volume, VOLUME_FIELDS), "children": [_node_json(child) for child in node.children]}


def _detail_json(detail: "VolumeDetail") -> dict[str, Any]:
    return {
        **as_json(detail.volume, VOLUME_FIELDS),
        "ancestors": list(detail.ancestors),
        "children": list(detail.children),
        "device_name": detail.device_name,
        "device_uuid": detail.device_uuid,
        "device_number": detail.device_number,
        "highest_mapped": detail.highest_mapped,
        "holders": [{"name": holder.name, "pid": holder.pid or None, "how": holder.how} for holder in detail.holders],
    }


def _speaks_utf8() -> bool:
    """Return whether to draw branches in UTF-8. The locale must be UTF-8 too: Python can use UTF-8 in the C locale."""
    locale = next(filter(None, (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    written = (sys.stdout.encoding or "") if sys.stdout else ""
    return all("utf8" in name.lower().replace("-", "") for name in (locale, written))
