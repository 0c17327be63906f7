"""The `dmthin` command on a real pool: every verb, every sort of bad input, dry runs, signals."""

import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import pytest

from dmthin.cli import main
from dmthin.kernel import loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolStatus
from dmthin.store.schema import SCHEMA_VERSION
from dmthin.store.store import Store
from dmthin.store.views import tree as tree_of
from dmthin.units import GIB, MIB
from tests.kernel.conftest import SMALL, fill, kernel_state, take_down
from tests.waiting import until

COMMAND = [str(Path(sys.executable).with_name("dmthin"))]
SMALL_OPTIONS = [word for option in SMALL for word in ("--storage-opt", option)]


@dataclass(frozen=True)
class Ran:
    """What one call of the command gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        document = json.loads(self.out)
        assert document.pop("version") == 1
        return document


class Command:
    """The command on one store, in this process: a process of its own costs half a second here."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *words: str) -> Ran:
        """Run it."""
        self._capsys.readouterr()
        status = main(["--root", str(self.root), *words])
        return Ran(status, *self._capsys.readouterr())

    def ok(self, *words: str) -> Ran:
        """Run it, and it succeeds."""
        ran = self(*words)
        assert ran.status == 0, ran.err
        return ran

    def fails(self, status: int, *words: str) -> str:
        """Run it, and it fails: with this status, nothing on standard output, one line on standard error."""
        ran = self(*words)
        assert (ran.status, ran.out) == (status, ""), ran.err
        lines = [line for line in ran.err.splitlines() if not line.startswith("usage:")]
        assert len(lines) == 1, ran.err
        assert lines[0].startswith("dmthin: ")
        return lines[0].removeprefix("dmthin: ")


@pytest.fixture
def dmthin(store: Store, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command on `store`."""
    return Command(store.layout.root, capsys)


@pytest.fixture
def fresh(scratch: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command on a place where a store may be made; it is taken down afterwards."""
    command = Command(scratch / "fresh", capsys)
    yield command
    with suppress(Exception):
        take_down(Store(command.root))


@pytest.fixture
def big_tar(scratch: Path) -> Path:
    """A tar of 400M, larger than the volumes here."""
    content = scratch / "content"
    fill(content, 400 * MIB)
    with tarfile.open(scratch / "big.tar", "w") as archive:
        archive.add(content, "content")
    content.unlink()
    return scratch / "big.tar"


def picture(store: Store) -> dict[str, object]:
    """Everything that a command that changes nothing leaves as it was."""
    tables, dm = {}, store.dm
    for device in dm.devices():
        tables[device.name] = (dm.table(device.name), dm.info(device.name).suspended)
    record, layout = store.ledger.store(), store.layout
    return {
        **kernel_state(),
        "tables": tables,
        "record": record,
        "volumes": store.ledger.volumes(),
        "transaction": store.pool.status().status and store.keeper.status(record).transaction_id,
        "sizes": [layout.data(record).size(), layout.metadata(record).size()],
        "files": sorted(path.name for path in layout.root.iterdir() if not path.name.startswith("ledger.db-")),
        "mount points": sorted(os.listdir(layout.mounts)),
    }


def paste(lines: str) -> None:
    """Run what a dry run has printed, as an administrator would."""
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(["sh", "-euc", lines], env=environment, check=True, capture_output=True, text=True)


# --- every verb ------------------------------------------------------------------------------------------------


def test_the_whole_life_of_a_store(fresh: Command, tree: Path) -> None:
    made = fresh.ok("pool", "create", *SMALL_OPTIONS)
    assert made == Ran(0, "", f"made the store {fresh.root}: 4G of data, 64M of metadata\n")
    assert fresh.ok("list") == Ran(0, "", "")
    imported = fresh.ok("image", "import", "debian:13", str(tree))
    assert imported.err == "imported debian:13: 256M, 4 entries, 6B in files\n"
    node = fresh.ok("container", "create", "debian:13", "web").out
    assert Path(node.strip()).is_block_device()
    assert fresh.ok("container", "create", "debian:13", "db", "--storage-opt", "size=300M").err == (
        "created db: 300M, a snapshot of debian:13\n"
    )
    place = Path(fresh.ok("container", "mount", "web").out.strip())
    assert place == fresh.root / "mnt/web"
    assert (place / "etc/motd").read_text() == "hello\n"
    elsewhere = fresh.root.parent / "elsewhere"
    assert fresh.ok("container", "mount", "db", str(elsewhere)).out == f"{elsewhere}\n"
    assert fresh.ok("container", "resize", "web", "+20%").err == "resized web: 256M -> 308M\n"
    assert fresh.ok("container", "resize", "web", "308M").err == "web has 308M already\n"
    assert fresh.ok("container", "commit", "web", "debian:mine").out == ""
    assert fresh.ok("container", "ls", "-H", "-o", "name,size,state,mounts").out.splitlines() == [
        f"db\t300M\tmounted\t{elsewhere}",
        f"web\t308M\tmounted\t{place}",
    ]
    assert [line.split()[0] for line in fresh.ok("image", "list").out.splitlines()] == [
        "NAME", "debian:13", "debian:mine"
    ]  # fmt: skip
    assert fresh.ok("container", "unmount", "web").err == "unmounted web\n"
    assert fresh.ok("container", "unmount", "web").err == "web was not mounted\n"
    fresh.ok("container", "unmount", "db")
    for name in ("web", "db"):
        fresh.ok("container", "rm", name)
    for name in ("debian:mine", "debian:13"):
        fresh.ok("image", "remove", name)
    assert "the host got" in fresh.ok("pool", "trim").err
    assert fresh.ok("pool", "deactivate").err == "the pool is down\n"
    assert fresh.ok("pool", "activate").err == "the pool is active\n"
    assert fresh.ok("pool", "destroy", "--yes").err == f"destroyed the store {fresh.root}\n"
    assert not fresh.root.exists()
    elsewhere.rmdir()


def test_the_same_in_json(fresh: Command, tree: Path) -> None:
    pool = fresh.ok("pool", "create", *SMALL_OPTIONS, "--json").json["pool"]
    assert (pool["root"], pool["mode"], pool["data_size"]) == (str(fresh.root), "rw", 4 * GIB)
    image = fresh.ok("--json", "image", "import", "image", str(tree)).json["volume"]
    assert (image["name"], image["kind"], image["size"], image["mapped"]) == ("image", "image", 256 * MIB, None)
    web = fresh.ok("--json", "container", "create", "image", "web").json["volume"]
    assert (web["parent"], web["state"], web["mounts"]) == ("image", "active", [])
    assert web["mapped"] > MIB
    place = fresh.ok("--json", "container", "mount", "web").json["mounted"]
    assert fresh.ok("--json", "container", "resize", "web", "512M").json["volume"]["size"] == 512 * MIB
    assert fresh.ok("--json", "container", "commit", "web", "two").json["volume"]["parent"] == "image"
    volumes = fresh.ok("--json", "list").json["volumes"]
    assert [(volume["name"], volume["state"]) for volume in volumes] == [
        ("@base/ext4/256M", "inactive"),
        ("image", "inactive"),
        ("two", "inactive"),
        ("web", "mounted"),
    ]
    assert volumes[-1]["mounts"] == [place]
    assert fresh.ok("--json", "list", "-o", "name,size").json["volumes"][-1] == {"name": "web", "size": 512 * MIB}
    assert fresh.ok("--json", "container", "unmount", "web").json == {"unmounted": True}
    assert fresh.ok("--json", "container", "remove", "web").json == {"removed": "web"}
    assert fresh.ok("--json", "image", "remove", "two").json == {"removed": "two"}
    assert fresh.ok("--json", "pool", "trim").json["reclaimed"] >= 0
    assert fresh.ok("--json", "pool", "extend", "--data-size", "5G").json["pool"]["data_size"] == 5 * GIB
    assert fresh.ok("--json", "pool", "deactivate").json["pool"]["data_size"] is None
    assert fresh.ok("--json", "pool", "activate").json["pool"]["active"]
    assert fresh.ok("--json", "-y", "pool", "destroy").json == {"destroyed": str(fresh.root)}


def test_status_tells_every_field_of_the_kernels_line(dmthin: Command, store: Store, image: str) -> None:
    pool = dmthin.ok("--json", "pool", "status").json["pool"]
    line = store.keeper.status(store.ledger.store())
    assert set(pool["kernel"]) == {field.name for field in fields(PoolStatus)}
    assert pool["kernel"]["transaction_id"] == line.transaction_id == 1
    assert pool["metadata_used"] + pool["metadata_reserve"] == pool["kernel"]["metadata_used_blocks"] * 4096
    assert pool["data_used"] == pool["kernel"]["data_used_blocks"] * pool["block_size"] > 0
    assert pool["data_available"] == min(pool["data_free"], pool["host_free"])
    assert pool["data_length"] == 4 * GIB > pool["data_allocated"] > 0
    assert (pool["volumes"], pool["provisioned"], pool["overcommit"]) == (2, 512 * MIB, 0.125)
    text = dmthin.ok("pool", "status").out
    for word in ("mode", "needs check", "when full", "discard", "transaction id", "metadata snapshot", "low water"):
        assert word in text


def test_a_pool_that_fills_up_warns(
    make_store: Callable[..., Store], tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store("dm.loopdatasize=512M", "dm.basesize=512M")
    dmthin = Command(store.layout.root, capsys)
    dmthin.ok("image", "import", "image", str(tree))
    dmthin.ok("container", "create", "image", "web")
    fill(store.containers.mount("web") / "big", 455 * MIB)
    os.sync()
    assert re.search(r"warning: 9\d% of the pool's data is used: dmthin pool extend", dmthin.ok("pool", "status").err)
    assert dmthin.ok("pool", "status", "-q").err == ""
    assert "% of the pool's data" in dmthin.ok("--json", "pool", "status").json["warnings"][0]
    assert dmthin.fails(6, "container", "create", "image", "late").startswith("less than 10% of")


def test_du_counts_what_is_shared_once(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    place = store.containers.mount("web")
    fill(place / "own", 10 * MIB)
    os.sync()
    report = dmthin.ok("--json", "du").json
    by_name = {volume["name"]: volume for volume in report["volumes"]}
    assert 10 * MIB <= by_name["web"]["exclusive"] <= 12 * MIB
    for volume in by_name.values():
        assert volume["mapped"] == volume["exclusive"] + volume["shared"]
    total = report["total"]
    assert total["mapped"] == total["exclusive"] + total["shared"] == store.pool.status().data_used
    assert total["exclusive"] == sum(volume["exclusive"] for volume in by_name.values())
    lines = dmthin.ok("du", "-O", "-exclusive").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "web", "@base/ext4/256M", "image", "total"]
    assert len(dmthin.ok("du", "-H").out.splitlines()) == 3


def test_tree_and_inspect(dmthin: Command, store: Store, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        dmthin.ok("container", "create", image, name)
    place = store.containers.mount("one")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert dmthin.ok("tree").out.splitlines() == [
        "@base/ext4/256M  base       256M  inactive",
        "└─ image         image      256M  inactive",
        "   ├─ one        container  256M  mounted",
        "   └─ two        container  256M  active",
    ]
    monkeypatch.setenv("LC_ALL", "C")
    assert "`- image" in dmthin.ok("tree").out
    (root,) = dmthin.ok("--json", "tree").json["volumes"]
    assert [child["name"] for child in root["children"][0]["children"]] == ["one", "two"]
    assert len(tree_of(store)) == 1
    with (place / "etc/motd").open():
        one, two = json.loads(dmthin.ok("inspect", "one", "two").out)
        assert dmthin.ok("--json", "inspect", "one").json["volumes"][0]["name"] == "one"
    assert one["ancestors"] == ["image", "@base/ext4/256M"]
    assert [holder["pid"] for holder in one["holders"] if holder["pid"]] == [os.getpid()]
    assert one["mounts"] == [str(place)]
    assert two["holders"] == []
    assert json.loads(dmthin.ok("inspect", "image").out)[0]["children"] == ["one", "two"]


def test_sizes_of_the_pool_grow_by_amounts_and_shares(dmthin: Command, image: str) -> None:
    assert dmthin.ok("pool", "extend", "--data-size", "+1G", "--metadata-size", "+50%").err == (
        "data: 4G -> 5G\nmetadata: 64M -> 96M\n"
    )
    assert dmthin.ok("pool", "extend", "--data-size", "+20%").err == "data: 5G -> 6G\nmetadata: 96M as before\n"
    dmthin.ok("pool", "deactivate")
    assert dmthin.ok("pool", "extend", "--data-size", "+1G").err.startswith("data: 6G -> 7G")


def test_force_says_whose_end_is_awaited(dmthin: Command, store: Store, image: str) -> None:
    for name in ("busy", "idle"):
        dmthin.ok("container", "create", image, name)
        store.containers.mount(name)
    with (store.layout.mount_point("busy") / "file").open("w"):
        assert dmthin.ok("container", "rm", "--force", "busy").err == (
            "removed the container busy; its space comes back with its last user\n"
        )
        removing = dmthin.ok("--json", "container", "ls").json["volumes"][0]
        assert removing["state"] == "removing"
    assert dmthin.ok("container", "rm", "--force", "idle").err == "removed the container idle\n"
    assert dmthin.ok("container", "ls").out == ""


# --- dry runs --------------------------------------------------------------------------------------------------

CHANGES = [
    "pool extend --data-size +1G --metadata-size +20%",
    "pool destroy",
    "image import new {tree}",
    "image import new - --storage-opt size=300M",
    "image remove spare",
    "container create image new",
    "container create image new --storage-opt size=1G",
    "container mount idle",
    "container mount idle /mnt/elsewhere",
    "container unmount web",
    "container resize web +1G",
    "container resize idle +1G",
    "container commit web new",
    "container remove idle",
]


def test_a_dry_run_changes_nothing(dmthin: Command, store: Store, image: str, tree: Path) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "create", image, "idle")
    dmthin.ok("container", "commit", "idle", "spare")
    dmthin.ok("container", "mount", "web")
    before = picture(store)
    for change in CHANGES:
        if change == "pool destroy":
            assert dmthin.fails(5, "pool", "destroy", "--dry-run").startswith("the container web is in use")
            continue
        plan = dmthin.ok(*change.format(tree=tree).split(), "--dry-run")
        commands = [line for line in plan.out.splitlines() if not line.startswith("#")]
        assert commands, change
        assert dmthin.ok("--json", *change.format(tree=tree).split(), "--dry-run").json["plan"] == commands
        assert {line.split()[0] for line in commands} <= {
            *("dmsetup", "truncate", "losetup", "mount", "umount", "mkdir", "mkfs.ext4"),
            *("resize2fs", "cp", "tar", "blkdiscard"),
        }
    assert dmthin.fails(2, "pool", "trim", "--dry-run").startswith("pool trim cannot be shown as commands")
    assert picture(store) == before


def test_a_dry_run_fails_as_the_change_would(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    for status, change in (
        (4, "container create image web"),
        (3, "container create nothing new"),
        (2, "container create image new --storage-opt size=1M"),
        (2, "container create image a/b"),
        (5, "container remove web"),
        (2, "container remove --force web"),
        (2, "container resize web 1M"),
        (5, "image remove image"),
        (4, "image import image /"),
        (3, "image import new /nowhere"),
        (2, "pool extend --data-size 1G"),
        (5, "pool deactivate"),
    ):
        planned = dmthin.fails(status, *change.split(), "--dry-run")
        if "--force" not in change:
            assert planned.split(":")[0] == dmthin.fails(status, *change.split()).split(":")[0]


def test_the_plan_of_a_pool_can_be_pasted(fresh: Command) -> None:
    plan = fresh.ok("pool", "create", *SMALL_OPTIONS, "--dry-run").out
    assert not fresh.root.exists()
    fresh.root.mkdir()
    paste(plan)
    name = re.findall(r"dmsetup create (\S+)", plan)[0]
    with IoctlDeviceMapper() as dm:
        assert PoolStatus.parse(dm.status(name)).data_total_blocks == 4 * GIB // (64 << 10)
    paste(f"dmsetup remove {name}")
    for file in ("data", "metadata"):
        device = loop.find(fresh.root / file)
        assert device is not None
        device.detach()


def test_the_plans_of_growth_and_shutdown_can_be_pasted(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    paste(dmthin.ok("pool", "extend", "--data-size", "+1G", "--metadata-size", "128M", "--dry-run").out)
    now = store.pool.status()
    assert (now.data_size, now.metadata_size) == (5 * GIB, 128 * MIB)
    paste(dmthin.ok("container", "unmount", "web", "--dry-run").out)
    assert dmthin.ok("ls", "-H", "-o", "state").out.split() == ["inactive"] * 3
    paste(dmthin.ok("container", "mount", "web", "--dry-run").out)
    assert (store.layout.mount_point("web") / "etc/motd").read_text() == "hello\n"
    dmthin.ok("container", "unmount", "web")
    paste(dmthin.ok("pool", "deactivate", "--dry-run").out)
    assert dmthin.ok("--json", "pool", "status").json["pool"]["mode"] == "inactive"
    paste(dmthin.ok("pool", "activate", "--dry-run").out)
    assert dmthin.ok("pool", "activate", "--dry-run").out == "# the pool is active already\n"
    assert (store.containers.mount("web") / "etc/motd").read_text() == "hello\n"


@pytest.mark.parametrize(
    "change",
    ["image import new {tree}", "container create image new --storage-opt size=512M", "container commit web new"],
)
def test_the_plan_of_a_volume_can_be_pasted(
    dmthin: Command, store: Store, image: str, tree: Path, change: str
) -> None:
    dmthin.ok("container", "create", image, "web")
    store.containers.mount("web")
    number = len(store.ledger.volumes())
    paste(dmthin.ok(*change.format(tree=tree).split(), "--dry-run").out)
    record = store.ledger.store()
    with suppress(subprocess.CalledProcessError):
        paste(f"dmsetup remove {record.device_name(number)}")
    paste(f"dmsetup message {record.pool_name} 0 'delete {number}'")
    work = store.layout.work_point(number)
    if work.exists():
        work.rmdir()


# --- bad input -------------------------------------------------------------------------------------------------

BAD = [
    (2, "list --storage-opt dm.basesise=10G", r"unknown storage option 'dm\.basesise': did you mean dm\.basesize\?"),
    (2, "list --storage-opt dm.thinp_percent=95", r"dm\.thinp_percent has no effect without dm\.directlvm_device: .*"),
    (2, "list --storage-opt dm.blocksize=128K", r"dm\.blocksize=128K differs from the 64K of this store: .*"),
    (2, "list --storage-opt dm.basesize=1M", r"1M is too small for ext4: give at least 16M"),
    (2, "list --storage-opt dm.basesize=128M", r"dm\.basesize=128M is less than this store's 256M: it only grows"),
    (2, "list -o nonsense", r"unknown field 'nonsense': there is name, .*"),
    (2, "container resize web big", r"size: 'big' is not a size: .*"),
    (2, "container resize web 20%", r"size: '20%' is not a size: sizes only grow; .*"),
    (2, "container resize web 300000001", r"size: 300000001 is not a multiple of 1K: .*"),
    (2, "container resize web 1M", r"the container web has 256M and cannot shrink to 1M: a volume only grows"),
    (2, "container create image new --storage-opt size=many", r"size: 'many' is not a size: .*"),
    (2, "container create image new --storage-opt size=1M", r"size 1M is less than the 256M of the image image: .*"),
    (2, "container create image new --storage-opt sise=1G", r"unknown storage option 'sise'.*"),
    (2, "container create image a/b", r"'a/b' is no name for a container: .*"),
    (2, "image import @x {tree}", r"'@x' is no name for an image: .*"),
    (2, "pool extend", r"there is nothing to extend: give --data-size, --metadata-size or both"),
    (2, "pool extend --data-size 1G", r"the pool's data has 4G and cannot shrink to 1G: a thin pool only grows"),
    (2, "pool extend --data-size 20000P", r".*'20000P' is more than any device can have: give a size below 8192P"),
    (2, "pool extend --metadata-size 100G", r"the kernel uses no more than 15\.9G of metadata: give at most 15G"),
    (2, "pool destroy", r"this needs a confirmation: the store .* 1 base, 1 image, 1 container; .*: give --yes .*"),
    (2, "image import new {corrupt}", r".*corrupt\.tar.*"),
    (2, "image import new {cut}", r".*cut\.tar\.gz.*"),
    (3, "image import new /nowhere", r"/nowhere does not exist: .*"),
    (3, "container create nothing new", r"there is no image 'nothing': see: dmthin list"),
    (3, "container create web new", r"'web' is a container, not an image: see: dmthin list"),
    (3, "container mount nothing", r"there is no container 'nothing': see: dmthin list"),
    (3, "inspect web nothing", r"there is no volume 'nothing': see: dmthin list"),
    (3, "image remove web", r"'web' is a container, not an image: see: dmthin list"),
    (4, "container create image web", r"the name 'web' is in use by a container: choose another"),
    (4, "container commit web image", r"the name 'image' is in use by an image: choose another"),
    (4, "image import image {tree}", r"the name 'image' is in use by an image: choose another"),
    (4, "pool create", r".* is a store already: see: dmthin pool status"),
    (5, "image remove image", r"the image image has children: web: remove those first"),
    (5, "container remove web", r"the container web is mounted at .*/mnt/web: run: dmthin container unmount web, .*"),
    (5, "container mount web /proc", r"something else is mounted at /proc: choose another folder"),
    (5, "pool deactivate", r"the container web is in use by .*: unmount it, or stop that, first"),
    (5, "pool destroy --yes", r"the container web is in use by .*: unmount it, or stop that, first"),
    (6, "image import new {big}", r".*big\.tar does not fit into an image of 256M: .*: give a larger --storage-opt .*"),
]


def test_bad_input_gets_one_clear_line_and_changes_nothing(
    dmthin: Command, store: Store, image: str, tree: Path, scratch: Path, big_tar: Path
) -> None:
    corrupt, cut = scratch / "corrupt.tar", scratch / "cut.tar.gz"
    corrupt.write_bytes(b"no tar at all\n" * 1000)
    subprocess.run(["tar", "-czf", cut, "-C", "/usr/bin", "perl"], check=True)
    os.truncate(cut, cut.stat().st_size // 2)
    places = {"tree": tree, "corrupt": corrupt, "cut": cut, "big": big_tar}
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    before = picture(store)
    for status, line, message in BAD:
        words = dmthin.fails(status, *line.format(**places).split())
        assert re.fullmatch(message, words), (line, words)
        assert picture(store) == before, line
        quiet = dmthin(*line.format(**places).split(), "--json") if status != 6 else None
        if quiet:
            assert json.loads(quiet.err)["error"]["exit_code"] == status


def test_a_folder_that_is_no_store(capsys: pytest.CaptureFixture[str], scratch: Path) -> None:
    no_store = Command(scratch, capsys)
    assert no_store.fails(3, "list") == f"{scratch} is not a store: make one with: dmthin pool create"
    with closing(sqlite3.connect(scratch / "ledger.db")) as other:
        other.execute("CREATE TABLE somebody_elses (x)")
    assert no_store.fails(3, "pool", "status").startswith(f"{scratch}/ledger.db is not a ledger of dmthin")
    (scratch / "ledger.db").unlink()
    (scratch / "data").touch()
    assert no_store.fails(4, "pool", "create").startswith(f"{scratch}/data exists already")
    assert [path.name for path in scratch.iterdir()] == ["data"]


def test_a_store_of_a_newer_dmthin(dmthin: Command, store: Store) -> None:
    with closing(sqlite3.connect(store.layout.ledger)) as ledger:
        (version,) = ledger.execute("PRAGMA user_version").fetchone()
        ledger.execute("PRAGMA user_version = 99")
        try:
            for words in (["list"], ["pool", "status"], ["pool", "destroy", "--yes"]):
                assert dmthin.fails(9, *words).endswith(f"(schema 99, this one knows {SCHEMA_VERSION}): upgrade dmthin")
        finally:
            ledger.execute(f"PRAGMA user_version = {version}")


def test_a_full_host_disk_at_creation(fresh: Command) -> None:
    fresh.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(fresh.root)], check=True)
    try:
        assert fresh.fails(6, "pool", "create").startswith(f"the file system of {fresh.root} has only ")
        assert list(fresh.root.iterdir()) == []
    finally:
        mount.unmount(fresh.root)


def test_a_pool_that_another_store_holds(
    dmthin: Command, store: Store, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, second = store.pool.status().name, Command(scratch / "second", capsys)
    words = second.fails(5, "pool", "create", "--storage-opt", f"dm.thinpooldev={name}")
    assert words.startswith(f"the pool {name} is in use by another store or program")
    assert not second.root.exists()
    dmthin.ok("pool", "deactivate")
    store.ledger.close()
    shutil.copytree(store.layout.root, second.root, ignore=shutil.ignore_patterns("data", "mnt"))
    with (second.root / "data").open("wb") as data:
        data.truncate(4 * GIB)
    dmthin.ok("pool", "activate")
    words = second.fails(4, "pool", "activate")
    assert words.startswith(f"the pool {name} is held by another store, on {store.layout.root}/data")


def test_devices_that_carry_data_are_refused_until_confirmed(fresh: Command, scratch: Path) -> None:
    devices = {}
    for name, size in (("data", 256 * MIB), ("metadata", 16 * MIB)):
        with (scratch / name).open("wb") as file:
            file.truncate(size)
        devices[name] = loop.attach(scratch / name)
    try:
        subprocess.run(["mkfs.ext4", "-q", devices["data"].node], check=True)
        options = [
            *("--storage-opt", f"dm.datadev={devices['data'].node}"),
            *("--storage-opt", f"dm.metadatadev={devices['metadata'].node}"),
        ]
        carries = f"{devices['data'].node} carries data (ext4)"
        assert fresh.fails(4, "pool", "create", *options) == f"{carries}: give --force to overwrite it"
        words = fresh.fails(2, "pool", "create", "--force", *options)
        assert words == f"this needs a confirmation: {carries}, and would be overwritten: give --yes to go on"
        assert not fresh.root.exists()
        fresh.ok("pool", "create", "--force", "--yes", *options)
        assert fresh.fails(2, "pool", "extend", "--data-size", "1G").startswith(f"{devices['data'].node} has only 256M")
        assert fresh.ok("pool", "extend").err == "data: 256M as before\nmetadata: 16M as before\n"
        os.truncate(scratch / "data", 512 * MIB)
        devices["data"].refresh_size()
        assert fresh.ok("pool", "extend").err == "data: 256M -> 512M\nmetadata: 16M as before\n"
        assert fresh.ok("--json", "pool", "trim").json == {"reclaimed": None}
        assert f"the content of its devices: {devices['data'].node}" in fresh.fails(2, "pool", "destroy")
        fresh.ok("pool", "destroy", "--yes")
    finally:
        for device in devices.values():
            device.detach()


def test_without_rights(dmthin: Command, store: Store) -> None:
    dmthin.ok("list")
    for words in (["list"], ["container", "mount", "web"], ["pool", "create"]):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            os.setresuid(65534, 65534, 65534)
            os._exit(main(["--root", str(store.layout.root), *words]))
        os.close(writing)
        with open(reading) as stream:
            said = stream.read()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8, said
        assert re.fullmatch(r"dmthin: .*: run this as root\n", said)


def test_a_kernel_without_device_mapper(scratch: Path) -> None:
    """Its control node is hidden by a mount that only the command sees."""
    hide = "mount -t tmpfs none /dev/mapper && exec \"$@\""
    line = ["unshare", "--mount", "sh", "-c", hide, "sh", *COMMAND, "--root", str(scratch / "new"), "pool", "create"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert done.stderr == "dmthin: this kernel has no device-mapper: load it with: modprobe dm-thin-pool\n"
    assert not (scratch / "new").exists()


# --- signals, terminals ----------------------------------------------------------------------------------------


def importing(root: Path, *words: str, given: int = 4 * MIB, **options: Any) -> "subprocess.Popen[bytes]":
    """An import from standard input that is given the first bytes of a tar, and then waits for more."""
    line = [*COMMAND, "--root", str(root), "image", "import", "big", "-", *words]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=options.pop("stderr", subprocess.PIPE), **options)
    head = tarfile.TarInfo("content")
    head.size = 100 * MIB
    assert process.stdin is not None
    process.stdin.write(head.tobuf() + bytes(given))
    process.stdin.flush()
    return process


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_in_an_import_leaves_nothing(
    dmthin: Command, store: Store, image: str, number: signal.Signals, status: int
) -> None:
    before = picture(store)
    process = importing(store.layout.root)
    until(lambda: any(entry.target.startswith(f"{store.layout.root}/work/") for entry in mount.table()))
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status
    assert re.fullmatch(rb"dmthin: \w+( up)?: what was under way has been undone, .*\n", err)
    assert picture(store) == before
    assert dmthin.ok("image", "ls", "-H", "-o", "name").out == "image\n"


def test_impatience_leaves_no_traceback(store: Store, image: str) -> None:
    process = importing(store.layout.root)
    until(lambda: any(entry.target.startswith(f"{store.layout.root}/work/") for entry in mount.table()))
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, err = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)  # the latter when all was done already
    assert b"Traceback" not in err
    assert all(line.startswith(b"dmthin: ") for line in err.splitlines())
    store.pool.activate()
    assert [volume.name for volume in store.ledger.volumes()] == ["@base/ext4/256M", "image"]


def test_a_signal_while_a_program_runs(store: Store, dmthin: Command) -> None:
    """mkfs works on the base when the signal comes."""
    before = picture(store)
    process = importing(store.layout.root, "--storage-opt", "size=100G", given=0)
    until(lambda: any(running.info["name"] == "mkfs.ext4" for running in psutil.process_iter(["name"])))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    dmthin.ok("pool", "activate")
    assert picture(store) == before


def test_a_signal_in_this_very_process(dmthin: Command, store: Store, image: str, scratch: Path) -> None:
    before = picture(store)
    pipe = scratch / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        head = tarfile.TarInfo("content")
        head.size = 100 * MIB
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            stream.write(head.tobuf() + bytes(4 * MIB))
            os.kill(os.getpid(), signal.SIGINT)
            stream.write(bytes(1 * MIB))

    thread = threading.Thread(target=feed)
    thread.start()
    ran = dmthin("image", "import", "new", str(pipe))
    thread.join()
    assert ran.status == 130
    assert ran.err.startswith("dmthin: interrupted: ")
    assert picture(store) == before


def on_terminal(line: list[str], answer: str = "") -> tuple[int, str]:
    """Run a command on a terminal of its own, answer its question; its status and all that the terminal showed."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(line[0], line)
    if answer:
        os.write(terminal, f"{answer}\n".encode())
    shown = b""
    with suppress(OSError):  # EIO once the other side has closed
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_destroying_asks_on_a_terminal(fresh: Command) -> None:
    fresh.ok("pool", "create", *SMALL_OPTIONS)
    line = [*COMMAND, "--root", str(fresh.root), "pool", "destroy"]
    status, shown = on_terminal(line, "no")
    assert status == 1
    assert f"To destroy this, type {fresh.root} or yes:" in shown
    assert "its volumes: none" in shown
    assert "dmthin: not confirmed, nothing was changed" in shown
    assert fresh.ok("--json", "pool", "status").json["pool"]["mode"] == "rw"
    status, shown = on_terminal(line, str(fresh.root))
    assert status == 0
    assert f"destroyed the store {fresh.root}" in shown
    assert not fresh.root.exists()


def test_progress_on_a_terminal_comes_late_and_goes(store: Store, image: str) -> None:
    terminal, behind = pty.openpty()
    process = importing(store.layout.root, stderr=behind)
    os.close(behind)
    assert process.stdin is not None
    shown, deadline = b"", time.monotonic() + 30
    left = 96 * MIB
    while left and time.monotonic() < deadline:
        piece = min(left, MIB)
        process.stdin.write(bytes(piece))
        left -= piece
        time.sleep(0.04)
    process.stdin.write(bytes(10240))
    process.stdin.close()
    with suppress(OSError):
        while select.select([terminal], [], [], 60)[0] and (piece_shown := os.read(terminal, 4096)):
            shown += piece_shown
    os.close(terminal)
    assert process.wait() == 0
    lines = shown.decode().split("\r")
    assert any(re.fullmatch(r"1 entries, [\d.]+M, [\d.]+M/s *", line) for line in lines), lines
    assert re.search(r"\r +\rimported big: 256M, 1 entries, 100M in files\s*$", shown.decode())
