"""The names of a real dockerd in the `dmthin` command: shown, accepted, and kept from an administrator's verbs."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmthin.kernel import mount
from dmthin.store.owners import short
from enginelib.daemons import tar_of
from enginelib.docker import Docker
from tests.engine.docker.conftest import MINI
from tests.support.archives import docker_archive
from tests.support.command import on_terminal

TWO = "two:1"


@pytest.fixture
def named(docker: Docker, mini: bytes) -> Iterator[Docker]:
    """dockerd with an image of two layers, of which the lower is another image too, and three containers."""
    docker("load", stdin=docker_archive(TWO, [mini, tar_of({"srv/mark": b"1"})]))
    docker("tag", TWO, "other/two")
    docker("run", "-d", "--net=none", "--name", "web", TWO, "sleep", "1000")
    docker("create", "--net=none", "--name", "idle", MINI, "true")
    docker("create", "--net=none", "--name", "spare", TWO, "true")
    yield docker
    for container in docker("ps", "-aq").split():
        docker("rm", "-f", container)
    docker("rmi", "other/two", TWO)
    docker.await_only_known_volumes()


def run(docker: Docker, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["dmthin", "--root", str(docker.home), *words], capture_output=True, text=True)


def ok(docker: Docker, *words: str) -> str:
    done = run(docker, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(docker: Docker, status: int, *words: str) -> str:
    done = run(docker, *words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr.removeprefix("dmthin: ").rstrip("\n")


def inspected(docker: Docker, name: str, field: str) -> str:
    return docker("inspect", "-f", f"{{{{{field}}}}}", name).strip()


def device_id(docker: Docker, name: str) -> int:
    """The volume of a container or an image, as dmthin told dockerd, and docker inspect tells us."""
    return int(inspected(docker, name, ".GraphDriver.Data.DeviceId"))


def volumes(docker: Docker) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok(docker, "--json", "list"))["volumes"]
    return found


def identities(docker: Docker) -> set[tuple[str, int]]:
    """The volumes' names and device ids: whether one has a device now changes by itself."""
    return {(one["name"], one["device_id"]) for one in volumes(docker)}


def volume_of(docker: Docker, name: str) -> str:
    (found,) = (one["name"] for one in volumes(docker) if one["device_id"] == device_id(docker, name))
    return str(found)


def test_every_volume_has_what_dockerd_calls_it(named: Docker) -> None:
    listed = {one["device_id"]: one for one in volumes(named)}
    for name, shown in (("web", "web"), ("idle", "idle"), (TWO, f"other/two:latest, {TWO}"), (MINI, f"{MINI}:latest")):
        one = listed[device_id(named, name)]
        assert (one["engine"], one["engine_name"]) == ("dockerd", shown)
        assert one["engine_id"] == inspected(named, name, ".Id")
    inits = {one["engine_name"] for one in listed.values() if one["name"].endswith("-init")}
    assert inits == {"web (init)", "idle (init)", "spare (init)"}
    assert {one["name"] for one in listed.values() if one["engine"] is None} == {"@base/ext4/512M"}
    used = {one["name"]: one["engine_name"] for one in json.loads(ok(named, "--json", "du"))["volumes"]}
    assert used == {one["name"]: one["engine_name"] for one in listed.values()}


def test_ids_are_short_on_a_terminal_and_whole_in_a_pipe(named: Docker) -> None:
    web, line = volume_of(named, "web"), ("dmthin", "--root", str(named.home))
    for command in ("list", "tree", "du", "container ls"):
        (shown,) = (text for text in on_terminal(*line, *command.split()).splitlines() if short(web) + " " in text)
        assert "web" in shown.split()
        for whole in (on_terminal(*line, *command.split(), "--no-trunc"), ok(named, *command.split())):
            (shown,) = (text for text in whole.splitlines() if f"{web} " in text)
            assert "web" in shown.split()
    for command in ("list", "du"):
        (shown,) = (text for text in ok(named, command, "-H").splitlines() if text.startswith(f"{web}\t"))
        assert "web" not in shown.split("\t")


def test_a_verb_takes_what_docker_shows(named: Docker, folder: Path) -> None:
    for kind, name in (("container", "web"), ("image", TWO), ("image", "other/two"), ("image", MINI)):
        identity, volume = inspected(named, name, ".Id"), volume_of(named, name)
        bare = identity.removeprefix("sha256:")
        for text in (name, identity, bare, bare[:12], volume, short(volume)):
            (found,) = json.loads(ok(named, "inspect", text))
            assert (found["name"], found["kind"]) == (volume, kind), text
    before = int(named("exec", "web", "sh", "-c", "df -m / | tail -n 1 | awk '{print $2}'"))
    done = run(named, "container", "resize", "web", "+512M")
    assert (done.returncode, done.stderr) == (0, "resized web: 512M -> 1G\n")
    run(named, "container", "resize", inspected(named, "web", ".Id")[:12], "2G").check_returncode()
    after = int(named("exec", "web", "sh", "-c", "df -m / | tail -n 1 | awk '{print $2}'"))
    assert after - before > 1200
    assert ok(named, "container", "mount", "idle", str(folder)) == f"{folder}\n"
    assert (folder / "bin").is_dir()
    ok(named, "container", "unmount", "idle")
    assert not [entry for entry in mount.table() if entry.target == str(folder)]
    assert "there is no container" in refused(named, 3, "container", "mount", "nothing")
    assert "there is no container" in refused(named, 3, "container", "mount", TWO)


def test_dockerds_volumes_are_not_removed(named: Docker) -> None:
    before = identities(named)
    spare = volume_of(named, "spare")
    sentence = (
        f'volume {short(spare)} is the root of dockerd\'s container "spare": use docker rm spare, or give --force'
    )
    for name in ("spare", inspected(named, "spare", ".Id")[:12], spare):
        assert refused(named, 5, "container", "rm", name) == sentence
        assert refused(named, 5, "--dry-run", "container", "rm", name) == sentence
    init = refused(named, 5, "container", "rm", f"{spare}-init")
    assert 'is the init layer of dockerd\'s container "spare": use docker rm spare' in init
    top = refused(named, 5, "image", "rm", TWO)
    assert "is the top layer of dockerd's image other/two:latest: use docker rmi other/two:latest" in top
    whole = refused(named, 5, "pool", "destroy", "--yes")
    assert "volumes belong to dockerd: " in whole
    assert whole.endswith("remove its containers and images first, or give --force")
    assert identities(named) == before


def test_with_force_an_administrator_removes_them(named: Docker) -> None:
    volume = volume_of(named, "spare")
    run(named, "container", "rm", "spare", "--force").check_returncode()
    assert volume not in {one["name"] for one in volumes(named)}
    named("rm", "spare")
    named("exec", "web", "true")


def test_an_administrators_own_volumes_are_not_protected(named: Docker) -> None:
    run(named, "container", "create", TWO, "mine").check_returncode()
    run(named, "container", "commit", "web", "kept").check_returncode()
    for one in volumes(named):
        assert (one["name"] in ("mine", "kept", "@base/ext4/512M")) == (one["engine"] is None)
    run(named, "container", "rm", "mine").check_returncode()
    run(named, "image", "rm", "kept").check_returncode()


def test_what_a_build_leaves_is_dockerds(named: Docker) -> None:
    named("build", "--network=none", "-t", "built", "-", stdin=f"FROM {TWO}\nRUN touch /a\n".encode(), buildkit=True)
    assert {one["name"] for one in volumes(named) if one["engine"] is None} == {"@base/ext4/512M"}
    named("rmi", "built")
    for one in volumes(named):
        if one["kind"] == "image" and not one["engine_name"]:
            assert "is a layer of dockerd" in refused(named, 5, "image", "rm", one["name"])
    named("builder", "prune", "-af")
