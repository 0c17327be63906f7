"""The names of a real containerd's containers in the `dmthin` command: shown, accepted, and kept."""

import json
import subprocess
from typing import Any

from dmthin.store.owners import short
from dmthin.units import GIB
from tests.engine.containerd.conftest import IMAGE
from tests.support.command import on_terminal
from tests.support.containerd import DMTHIN, LARGE, Containerd


def run(containerd: Containerd, *words: str) -> "subprocess.CompletedProcess[str]":
    line = ["dmthin", "--root", str(containerd.stores[DMTHIN]), *words]
    return subprocess.run(line, capture_output=True, text=True)


def volumes(containerd: Containerd) -> list[dict[str, Any]]:
    done = run(containerd, "--json", "list")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["volumes"]
    return [one for one in found if one["state"] != "making"]


def test_names_of_containers_and_layers(containerd: Containerd, chain: list[str]) -> None:
    containerd.background(IMAGE, "web")
    by_name = {one["engine_name"]: one for one in volumes(containerd) if one["engine"]}
    assert {one["engine"] for one in by_name.values()} == {"containerd"}
    assert by_name["web"]["name"].endswith("/web")
    assert by_name["image of web"]["engine_id"] == chain[-1]
    assert set(by_name) == {"web", "image of web", *chain[:-1]}
    line = ("dmthin", "--root", str(containerd.stores[DMTHIN]), "tree")
    for name, layer in ((short(chain[0]), True), (chain[0], False)):
        assert (f"/{name} " in on_terminal(*line)) == layer
        assert (f"/{name} " in run(containerd, "tree").stdout) != layer


def test_a_verb_takes_the_containers_name(containerd: Containerd, chain: list[str]) -> None:
    containerd.background(IMAGE, "web")
    done = run(containerd, "container", "resize", "web", "1G")
    assert (done.returncode, done.stderr) == (0, "resized web: 512M -> 1G\n")
    said = containerd.execute("web", "df -m / | tail -n 1").split()
    assert int(said[1]) > 900
    for text in (chain[-1], chain[-1][:19], chain[-1].partition(":")[2][:12]):
        (found,) = json.loads(run(containerd, "inspect", text).stdout)
        assert found["engine_id"] == chain[-1]


def test_two_containers_of_one_name_are_told_apart(containerd: Containerd, chain: list[str]) -> None:
    with containerd.snapshots() as first, containerd.snapshots(LARGE) as second:
        first.prepare("same")
        second.prepare("same")
        done = run(containerd, "container", "resize", "same", "2G")
        assert done.returncode == 2
        names = [one["name"] for one in volumes(containerd) if one["engine_name"] == "same"]
        assert len(names) == 2
        assert all(name in done.stderr for name in names)
        run(containerd, "container", "resize", names[0], "2G").check_returncode()
        assert sorted(one["size"] // GIB for one in volumes(containerd) if one["name"] in names) in ([0, 2], [1, 2])
        first.remove("same")
        second.remove("same")


def test_containerds_volumes_are_not_removed(containerd: Containerd, chain: list[str]) -> None:
    containerd.background(IMAGE, "web")
    before = {one["name"] for one in volumes(containerd)}
    (web,) = (one["name"] for one in volumes(containerd) if one["engine_name"] == "web")
    for name in ("web", web):
        done = run(containerd, "container", "rm", name)
        assert (done.returncode, done.stderr) == (
            5,
            f'dmthin: volume {web} is containerd\'s active snapshot "web" of namespace default: '
            "remove it with ctr -n default, or give --force\n",
        )
    layer = run(containerd, "image", "rm", chain[0])
    assert layer.returncode == 5
    assert f"is containerd's layer {short(chain[0])} of namespace default" in layer.stderr
    whole = run(containerd, "--yes", "pool", "destroy")
    assert whole.returncode == 5
    assert "4 volumes belong to containerd: " in whole.stderr
    assert {one["name"] for one in volumes(containerd)} == before


def test_with_force_an_administrator_removes_them(containerd: Containerd, chain: list[str]) -> None:
    with containerd.snapshots() as client:
        client.prepare("idle")
        run(containerd, "container", "rm", "idle", "--force").check_returncode()
        assert "idle" not in {one["engine_name"] for one in volumes(containerd)}
        client.remove("idle")
