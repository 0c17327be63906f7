"""dockerd's records of images and containers: what they say of volumes, and what is wrong in them is passed over."""

import hashlib
import json
from pathlib import Path

import pytest

from dmthin.docker.owners import docker_owners
from dmthin.docker.records import DockerRecords, container_names, default_data_root
from dmthin.errors import NotFound
from dmthin.store.owners import Owner

BOTTOM, MIDDLE, TOP, CACHED = (letter * 64 for letter in "abcd")
MOUNT, MAKING, STEP = "1" * 64, "2" * 64, "x1" * 12 + "y"
WEB, UNNAMED = "e" * 64, "f" * 64
DIFFS = [f"sha256:{number * 64}" for number in "345"]


def chain(diffs: list[str]) -> str:
    found = diffs[0]
    for diff in diffs[1:]:
        found = f"sha256:{hashlib.sha256(f'{found} {diff}'.encode()).hexdigest()}"
    return found


CHAINS = [chain(DIFFS[: count + 1]) for count in range(3)]
TWO, THREE, UNTAGGED = "7" * 64, "8" * 64, "9" * 64


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def layer(root: Path, chain_id: str, volume: str, diff: str) -> None:
    folder = root / "image/dmthin/layerdb/sha256" / chain_id.partition(":")[2]
    write(folder / "cache-id", volume)
    write(folder / "diff", diff)


def image(root: Path, identity: str, diffs: list[str]) -> None:
    write(root / "image/dmthin/imagedb/content/sha256" / identity, {"rootfs": {"type": "layers", "diff_ids": diffs}})


def container(root: Path, identity: str, mount: str, name: str = "") -> None:
    folder = root / "image/dmthin/layerdb/mounts" / identity
    write(folder / "mount-id", mount)
    write(folder / "init-id", f"{mount}-init")
    if name:
        write(root / "containers" / identity / "config.v2.json", {"ID": identity, "Name": f"/{name}"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root of dockerd with two images, of two layers and of three, a cached layer, and containers."""
    for chain_id, volume, diff in zip(CHAINS, (BOTTOM, MIDDLE, TOP), DIFFS, strict=True):
        layer(tmp_path, chain_id, volume, diff)
    layer(tmp_path, f"sha256:{'6' * 64}", CACHED, DIFFS[0])
    image(tmp_path, TWO, DIFFS[:2])
    image(tmp_path, THREE, DIFFS)
    names = {"two:1": f"sha256:{TWO}", "two:latest": f"sha256:{TWO}", f"two@sha256:{'0' * 64}": f"sha256:{TWO}"}
    three = {"reg:5000/three:1": f"sha256:{THREE}"}
    write(tmp_path / "image/dmthin/repositories.json", {"Repositories": {"two": names, "reg:5000/three": three}})
    container(tmp_path, WEB, MOUNT, "web")
    container(tmp_path, UNNAMED, MAKING)
    container(tmp_path, STEP, f"{STEP}2")
    return tmp_path


def owners(root: Path, *volumes: str) -> dict[str, Owner]:
    return docker_owners(DockerRecords(root / "dmthin"), volumes)


def test_layers_of_images_have_the_images_names(root: Path) -> None:
    found = owners(root)
    top, middle, bottom = (found[volume] for volume in (TOP, MIDDLE, BOTTOM))
    assert (top.name, top.id) == ("reg:5000/three:1", f"sha256:{THREE}")
    assert top.what == "the top layer of dockerd's image reg:5000/three:1"
    assert (middle.name, middle.names) == ("two:1, two:latest", ("two:1", "two:1", "two:latest", "two"))
    assert middle.ids == (TWO, MIDDLE)
    assert bottom.name == "layer of reg:5000/three:1 and 2 more"
    assert (bottom.names, bottom.remedy) == ((), "use docker rmi reg:5000/three:1")
    assert found[CACHED].what == "a layer of dockerd's build cache"
    assert {owner.engine for owner in found.values()} == {"dockerd"}


def test_an_image_without_a_name_goes_by_its_id(root: Path) -> None:
    image(root, UNTAGGED, DIFFS[:1])
    found = owners(root)[BOTTOM]
    assert (found.name, found.names[:1], found.id) == (UNTAGGED[:12], (UNTAGGED[:12],), f"sha256:{UNTAGGED}")


def test_layers_of_containers_have_the_containers_names(root: Path) -> None:
    found = owners(root)
    web, init = found[MOUNT], found[f"{MOUNT}-init"]
    assert (web.what, web.remedy) == ('the root of dockerd\'s container "web"', "use docker rm web")
    assert (web.name, web.id, web.names, web.ids) == ("web", WEB, ("web",), (WEB, MOUNT))
    assert (init.what, init.name) == ('the init layer of dockerd\'s container "web"', "web (init)")
    assert (init.names, init.ids) == ((), ())
    assert found[MAKING].what == f"the root of dockerd's container {UNNAMED[:12]}"
    assert found[f"{STEP}2"].what == "a layer that a build of dockerd's writes"


def test_what_is_named_as_dockerd_names_layers_is_dockerds(root: Path) -> None:
    cache = "0123456789abcdefghijklmno"
    found = owners(root, "@base/ext4/10G", "0" * 64, f"{'0' * 64}-init", cache, "mine", "A" * 64)
    unrecorded = {name for name in found if found[name].what == "a layer of dockerd without a record"}
    assert unrecorded == {"0" * 64, f"{'0' * 64}-init", cache}


@pytest.mark.parametrize(
    "content",
    [
        '{"Name": "/a b"}',
        f'{{"Name": "/{"a" * 999}"}}',
        "",
        "{",
        "[]",
        "null",
        '{"Name": 5}',
        '{"Name": null}',
        '{"Repositories": [1]}',
        "[" * 100_000,
        "\udcff",
        "{}",
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        "image/dmthin/repositories.json",
        f"image/dmthin/imagedb/content/sha256/{TWO}",
        f"containers/{WEB}/config.v2.json",
    ],
)
def test_a_damaged_record_is_passed_over(root: Path, place: str, content: str) -> None:
    (root / place).write_text(content, errors="surrogateescape")
    found = owners(root)
    assert {BOTTOM, MIDDLE, TOP, MOUNT} <= set(found)
    assert (found[MOUNT].id, found[MOUNT].name) == (WEB, "" if place.startswith("containers") else "web")


def test_records_that_are_missing_or_folders(root: Path) -> None:
    config = root / "containers" / WEB / "config.v2.json"
    config.unlink()
    config.mkdir()
    (root / "image/dmthin/repositories.json").unlink()
    (root / "image/dmthin/layerdb/mounts" / UNNAMED / "mount-id").unlink()
    found = owners(root)
    assert found[MOUNT].what == f"the root of dockerd's container {WEB[:12]}"
    assert found[TOP].name == THREE[:12]
    assert MAKING not in found


def test_a_store_beside_which_dockerd_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a dockerd's"):
        DockerRecords(tmp_path / "dmthin")
    assert container_names(tmp_path) == {}


def test_the_data_root_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMTHIN_DOCKER_ROOT", "/srv/docker")
    assert default_data_root() == Path("/srv/docker")


@pytest.mark.parametrize(
    ("content", "place"), [('{"data-root": "/srv/d"}', "/srv/d"), ('{"data-root": 5}', ""), ("x", ""), (None, "")]
)
def test_the_data_root_of_dockerds_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, place: str
) -> None:
    monkeypatch.delenv("DMTHIN_DOCKER_ROOT", raising=False)
    config = tmp_path / "daemon.json"
    if content is not None:
        config.write_text(content)
    monkeypatch.setattr("dmthin.docker.records._DAEMON_CONFIG", config)
    assert default_data_root() == Path(place or "/var/lib/docker")
