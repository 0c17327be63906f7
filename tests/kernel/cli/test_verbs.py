"""Every verb of the `dmthin` command on a real pool."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from dmthin.kernel.thin import PoolStatus
from dmthin.store.report import tree as tree_of
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support.command import SMALL_OPTIONS, Command, Ran
from tests.support.stores import fill


def test_the_whole_life_of_a_store(fresh: Command, tree: Path) -> None:
    made = fresh.ok("pool", "create", *SMALL_OPTIONS)
    assert made == Ran(0, "", f"created store {fresh.root}: 4G of data, 64M of metadata\n")
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
    assert fresh.ok("container", "resize", "web", "308M").err == "web already has 308M\n"
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
    assert fresh.ok("pool", "trim").err.startswith("reclaimed ")
    assert fresh.ok("pool", "deactivate").err == "deactivated the pool\n"
    assert fresh.ok("pool", "activate").err == "activated the pool\n"
    assert fresh.ok("pool", "destroy", "--yes").err == f"destroyed store {fresh.root}\n"
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
    line = store.lifecycle.activation.pool(store.ledger.store()).status()
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
    assert dmthin.ok("pool", "extend", "--data-size", "+20%").err == "data: 5G -> 6G\nmetadata: 96M (unchanged)\n"
    dmthin.ok("pool", "deactivate")
    assert dmthin.ok("pool", "extend", "--data-size", "+1G").err.startswith("data: 6G -> 7G")


def test_force_says_whose_end_is_awaited(dmthin: Command, store: Store, image: str) -> None:
    for name in ("busy", "idle"):
        dmthin.ok("container", "create", image, name)
        store.containers.mount(name)
    with (store.layout.mount_point("busy") / "file").open("w"):
        assert dmthin.ok("container", "rm", "--force", "busy").err == (
            "removed container busy; its space is freed after its last use\n"
        )
        removing = dmthin.ok("--json", "container", "ls").json["volumes"][0]
        assert removing["state"] == "removing"
    assert dmthin.ok("container", "rm", "--force", "idle").err == "removed container idle\n"
    assert dmthin.ok("container", "ls").out == ""
