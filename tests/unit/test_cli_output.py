"""What the command prints: tables, JSON, the pool's state, progress, one line for each error."""

import io
import json
from argparse import Namespace
from dataclasses import fields, replace

import pytest

from dmthin.cli import pool_status
from dmthin.cli.fields import USAGE_FIELDS, VOLUME_FIELDS, Format, as_json, shown
from dmthin.cli.listing import _tree_lines
from dmthin.cli.output import Output, one_line
from dmthin.cli.progress import ProgressLine, unpacking
from dmthin.cli.table import Table, aligned, describe, find, table_from_arguments
from dmthin.docker.owners import of_container
from dmthin.errors import AlreadyExists, InvalidValue, NoDataSpace
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.layers.unpack import Progress
from dmthin.store.pool import PoolReport
from dmthin.store.report import Activity, TreeNode, VolumeUsage, VolumeView, pool_warnings
from dmthin.store.state.model import Kind
from dmthin.units import GIB, KIB, MIB

IMAGE = VolumeView(
    name="debian:13",
    kind=Kind.IMAGE,
    size=10 * GIB,
    parent="@base/ext4/10G",
    file_system="ext4",
    created=1_800_000_000,
    device_id=1,
    state=Activity.INACTIVE,
    device=None,
    open_count=None,
    mounts=(),
    mapped=None,
)
WEB = replace(
    IMAGE,
    name="web",
    kind=Kind.CONTAINER,
    parent="debian:13",
    device_id=2,
    state=Activity.MOUNTED,
    device="/dev/dm-3",
    open_count=1,
    mounts=("/mnt/a\tb", "/srv"),
    mapped=300 * MIB,
)
REPORT = PoolReport(
    name="dmthin-01234567-pool",
    active=True,
    status=PoolStatus(
        PoolMode.READ_WRITE, 7, 5000, 524288, 1600, 1638400, None, "discard_passdown", "queue", False, 64
    ),
    block_size=64 * KIB,
    data="/srv/data",
    metadata="/srv/metadata",
    data_size=100 * GIB,
    data_used=100 * MIB,
    data_available=50 * GIB,
    data_allocated=90 * MIB,
    metadata_size=2 * GIB,
    metadata_used=3 * MIB,
    metadata_reserve=16 * MIB,
    metadata_available=2 * GIB - 19 * MIB,
    metadata_allocated=4 * MIB,
    host_free=50 * GIB,
    volumes=3,
    provisioned=250 * GIB,
)


def table(**options: object) -> Table[VolumeView]:
    given = {"columns": None, "sort": None, "noheadings": False, "tabs": False, "exact": False} | options
    brief = bool(given.pop("brief", False))
    return table_from_arguments(Namespace(**given), VOLUME_FIELDS, "name,size,state", brief=brief)


def test_columns_are_aligned_under_their_headings() -> None:
    assert table().text([IMAGE, WEB]) == (
        "NAME       SIZE  STATE\n"
        "debian:13   10G  inactive\n"
        "web         10G  mounted\n"
    )  # fmt: skip
    assert table(noheadings=True).text([WEB]) == "web  10G  mounted\n"
    assert table().text([]) == ""


def test_scripts_get_tabs_and_exact_bytes() -> None:
    rows = table(columns="name,size,mapped,mounts,created", tabs=True, exact=True).text([IMAGE, WEB])
    assert rows.splitlines() == [
        "debian:13\t10737418240\t-\t-\t1800000000",
        "web\t10737418240\t314572800\t/mnt/a\\tb,/srv\t1800000000",
    ]


def test_columns_are_chosen_and_added() -> None:
    assert [field.name for field in table(columns="+device,id,name").columns] == [
        "name", "size", "state", "device", "device_id"
    ]  # fmt: skip
    assert table(columns="used").columns == table(columns="mapped").columns
    with pytest.raises(InvalidValue, match=r"unknown field 'mount_at'.*did you mean"):
        table(columns="mount_at")
    with pytest.raises(InvalidValue, match="no fields specified"):
        table(columns=",")


def test_sorting_by_several_fields_with_the_unknown_first() -> None:
    other = replace(WEB, name="api", mapped=MIB)
    rows = [WEB, IMAGE, other]
    assert [row.name for row in table().sorted(rows)] == ["api", "debian:13", "web"]
    assert [row.name for row in table(sort="used,-name").sorted(rows)] == ["debian:13", "api", "web"]
    assert [row.name for row in table(sort="-mapped").sorted(rows)] == ["web", "api", "debian:13"]
    assert [row.name for row in table(sort="-kind,-name").sorted(rows)] == ["debian:13", "web", "api"]
    for field in VOLUME_FIELDS:
        table(sort=field.name).sorted(rows)


def test_a_total_stands_in_its_columns_and_not_in_what_scripts_read() -> None:
    usage = VolumeUsage("web", Kind.CONTAINER, GIB, 3 * MIB, MIB, 2 * MIB)
    options = {"columns": None, "sort": None, "noheadings": True, "tabs": False, "exact": False}
    shown_table = table_from_arguments(Namespace(**options), USAGE_FIELDS, "name,size,mapped")
    assert shown_table.text([usage], total={"name": "total", "mapped": 5 * MIB}) == "web    1G  3M\ntotal      5M\n"
    tabs = table_from_arguments(Namespace(**(options | {"tabs": True})), USAGE_FIELDS, "name,mapped")
    assert tabs.text([usage], total={"name": "total", "mapped": 5 * MIB}) == "web\t3M\n"


def test_one_table_of_fields_feeds_json_and_help() -> None:
    names = [field.name for field in VOLUME_FIELDS]
    of_owner = {"engine", "engine_name", "engine_id"}
    assert set(names) - of_owner == {field.name for field in fields(VolumeView)} - {"owner"}
    assert {field.name for field in USAGE_FIELDS} - of_owner == {field.name for field in fields(VolumeUsage)} - {
        "owner"
    }
    assert list(as_json(WEB, VOLUME_FIELDS)) == names
    assert json.loads(json.dumps(as_json(IMAGE, VOLUME_FIELDS)))["mapped"] is None
    assert as_json(WEB, VOLUME_FIELDS)["mounts"] == ["/mnt/a\tb", "/srv"]
    assert as_json(WEB, VOLUME_FIELDS)["engine_name"] is None
    owned = as_json(replace(WEB, owner=of_container("8" * 64, "web")), VOLUME_FIELDS)
    assert (owned["engine"], owned["engine_name"], owned["engine_id"]) == ("dockerd", "web", "8" * 64)
    text = describe(VOLUME_FIELDS)
    assert all(name in text for name in names)
    assert find(VOLUME_FIELDS, "fs").name == "file_system"


def test_names_of_files_do_not_break_lines() -> None:
    assert one_line("a\nb\x1b[31m\udcff") == "a\\nb\\x1b[31m\\udcff"
    assert shown("x\ny", Format.TEXT) == "x\\ny"
    assert aligned([["a", "b"], ["ccc", ""]]) == "a    b\nccc\n"


def test_ids_are_short_on_a_terminal_only() -> None:
    layer, root = "7" * 64, "5" * 64
    volume = replace(WEB, name=root, parent=layer, owner=of_container("8" * 64, "web"))
    columns = {"columns": "name,parent,engine_name,engine_id,engine"}
    assert table(brief=True, **columns, noheadings=True).text([volume]) == (
        "555555555555  777777777777  web  888888888888  dockerd\n"
    )
    full = [root, layer, "web", "8" * 64, "dockerd"]
    for options in ({}, {"brief": True, "tabs": True}):
        assert table(**options, **columns, noheadings=True).text([volume]).split() == full
    nodes = (TreeNode(volume, (TreeNode(IMAGE, ()),)),)
    lines = list(_tree_lines(nodes, ("|- ", "`- ", "|  ", "   "), exact=False, brief=True, named=True))
    assert [(line[0], line[-1]) for line in lines] == [("5" * 12, "web"), ("`- debian:13", "-")]


def test_a_tree_in_both_alphabets() -> None:
    leaf = TreeNode(WEB, ())
    nodes = (
        TreeNode(replace(IMAGE, name="base"), (TreeNode(IMAGE, (leaf, leaf)), TreeNode(IMAGE, (leaf,)))),
        TreeNode(replace(IMAGE, name="orphan"), ()),
    )
    names = [line[0] for line in _tree_lines(nodes, ("├─ ", "└─ ", "│  ", "   "), exact=False)]
    assert names == [
        "base",
        "├─ debian:13",
        "│  ├─ web",
        "│  └─ web",
        "└─ debian:13",
        "   └─ web",
        "orphan",
    ]


def test_the_status_has_every_field_of_the_kernels_line() -> None:
    document = pool_status.as_json("/srv", REPORT)
    assert REPORT.status is not None
    assert document["kernel"] == {field.name: getattr(REPORT.status, field.name) for field in fields(PoolStatus)}
    assert {field.name for field in fields(PoolReport)} - set(document) == {"status"}
    assert document["overcommit"] == 2.5
    text = pool_status.as_text("/srv", REPORT)
    for line in (
        "mode                rw",
        "needs check         no",
        "when full           queue",
        "discard             discard_passdown",
        "transaction id      7",
        "metadata snapshot   none",
        "metadata low water  256K",
        "data                100M used of 100G (0.10%), 99.9G free",
        "data writable       50G, limited by",
        "metadata            3M used of 1.98G (0.15%), 1.98G free",
        "metadata reserve    16M, kept by the kernel",
        "provisioned         250G, 2.50 times the pool",
    ):
        assert line in text
    assert "data                104857600 used of 107374182400" in pool_status.as_text("/srv", REPORT, exact=True)


@pytest.mark.parametrize("state", [None, PoolStatus(PoolMode.FAIL)])
def test_what_a_dead_pool_does_not_tell_is_unknown(state: PoolStatus | None) -> None:
    report = replace(REPORT, status=state, active=state is not None, data_size=0, data_used=0, metadata_size=0)
    document = pool_status.as_json("/srv", report)
    assert document["mode"] == ("inactive" if state is None else "fail")
    for name in ("data_size", "data_used", "data_free", "metadata_size", "overcommit", "kernel"):
        assert document[name] is None
    assert document["provisioned"] == 250 * GIB
    assert "(" not in pool_status.as_text("/srv", report)


def test_warnings_before_it_hurts() -> None:
    assert REPORT.status is not None
    calm = replace(REPORT, host_free=200 * GIB)
    assert pool_warnings(calm) == []
    assert pool_warnings(replace(calm, status=None)) == []
    assert pool_warnings(REPORT) == ["the host's file system has 50.0G free, the pool promises 99.9G"]
    full = replace(calm, data_used=81 * GIB, metadata_used=2 * GIB - 17 * MIB)
    assert [text.partition(":")[0] for text in pool_warnings(full)] == [
        "81% of the pool's data is used",
        "99% of the pool's metadata is used",
    ]
    for mode in (PoolMode.READ_ONLY, PoolMode.OUT_OF_DATA_SPACE, PoolMode.FAIL):
        sick = replace(calm, status=replace(REPORT.status, mode=mode))
        assert pool_warnings(sick)[0].startswith(f"the pool is in mode {mode}: ")
    checked = replace(calm, status=replace(REPORT.status, needs_check=True))
    assert "needs a check" in pool_warnings(checked)[0]


def test_progress_shows_after_two_seconds_and_leaves_nothing() -> None:
    now = [100.0]
    stream = io.StringIO()
    line = ProgressLine(stream, lambda: now[0])
    state = Progress(entries=300, bytes=20 * MIB, read=10 * MIB, total=40 * MIB)
    line.show(lambda: unpacking(state, line.seconds))
    now[0] = 101.9
    line.show(lambda: unpacking(state, line.seconds))
    line.clear()
    assert stream.getvalue() == ""
    now[0] = 102.5
    line.show(lambda: unpacking(state, line.seconds))
    assert stream.getvalue() == "\r300 entries, 20.0M, 25%, 4.00M/s"
    now[0] = 102.6
    line.show(lambda: "too early")
    now[0] = 102.8
    line.show(lambda: "short")
    assert stream.getvalue().endswith("\rshort" + " " * 27)
    line.clear()
    assert stream.getvalue().endswith("\r     \r")


def test_progress_of_a_stream_knows_no_percentage() -> None:
    assert unpacking(Progress(1, 5, 1024, None), 2.0) == "1 entries, 5B, 512B/s"


def test_errors_are_one_line_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    error = AlreadyExists("the name 'a\nb' is in use", hint="choose another")
    Output().error(error)
    assert capsys.readouterr().err == "dmthin: the name 'a\\nb' is in use: choose another\n"
    Output(as_json=True).error(error)
    written = json.loads(capsys.readouterr().err)
    assert written == {
        "version": 1,
        "error": {
            "message": "the name 'a\nb' is in use",
            "hint": "choose another",
            "status": "exists",
            "exit_code": 4,
        },
    }
    Output(as_json=True).error(NoDataSpace("full"))
    assert json.loads(capsys.readouterr().err)["error"]["hint"] is None


def test_quiet_and_json_leave_the_chatter_out(capsys: pytest.CaptureFixture[str]) -> None:
    Output(quiet=True).say("done")
    Output(quiet=True).warn("careful")
    Output(as_json=True).say("done")
    assert capsys.readouterr() == ("", "")
    Output(as_json=True).warn("careful")
    Output().warn("careful")
    assert capsys.readouterr().err == '{"version": 1, "warning": "careful"}\ndmthin: warning: careful\n'


def test_plans_are_lines_or_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    Output().plan(["# why", "dmsetup ls"])
    assert capsys.readouterr().out == "# why\ndmsetup ls\n"
    Output(as_json=True).plan(["# why", "dmsetup ls"])
    assert json.loads(capsys.readouterr().out) == {"version": 1, "plan": ["dmsetup ls"]}
