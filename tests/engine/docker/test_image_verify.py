"""`dmthin image verify`: layers compared with the tars that dockerd loaded."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginelib.daemons import tar_of
from enginelib.docker import Docker
from tests.support.archives import docker_archive_of
from tests.support.docker_trees import opened

LOWER = tar_of({"srv": None, "srv/stale": b"1", "srv/gone": b"2", "etc": None, "etc/kept": b"3" * 5000})
UPPER = tar_of({"srv": None, "srv/.wh..wh..opq": b"", "srv/new": b"4", "etc/.wh.missing": b"", ".wh.nothing": b""})
IMAGE = "verified:1"


@pytest.fixture
def loaded(docker: Docker) -> Iterator[Docker]:
    """dockerd with an image whose upper layer empties a directory."""
    docker("load", stdin=docker_archive_of({IMAGE: [LOWER, UPPER]}))
    yield docker
    docker("rmi", IMAGE)
    docker.await_only_known_volumes()


def verified(docker: Docker, *names: str) -> tuple[int, list[str], str]:
    """The exit status, the problems found, and the error."""
    line = ["dmthin", "--json", "--root", str(docker.home), "image", "verify", *names]
    done = subprocess.run(line, capture_output=True, text=True)
    layers = json.loads(done.stdout)["layers"] if done.stdout else []
    return done.returncode, [problem for layer in layers for problem in layer["problems"]], done.stderr


def test_sound_images(loaded: Docker) -> None:
    assert verified(loaded) == (0, [], "")
    assert verified(loaded, IMAGE) == (0, [], "")


def leave_stale(root: Path) -> None:
    """What dmthin 0.1 left, which took the opaque mark for a file of aufs."""
    (root / "srv/stale").write_bytes(b"1")
    (root / "srv/inner").mkdir()


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (leave_stale, ["srv/inner should have been deleted", "srv/stale should have been deleted"]),
        (lambda root: (root / "srv/new").unlink(), ["srv/new is missing, or has another size"]),
        (lambda root: (root / "srv/new").write_bytes(b"44"), ["srv/new is missing, or has another size"]),
        (lambda root: (root / "srv/new").write_bytes(b"5"), ["the content of its files is not that of its tar"]),
        (lambda root: (root / "etc/missing").write_bytes(b"5"), ["etc/missing should have been deleted"]),
    ],
    ids=["stale", "missing", "longer", "changed", "whiteout"],
)
def test_a_damaged_layer(loaded: Docker, damage: Callable[[Path], object], problems: list[str]) -> None:
    with opened(loaded, IMAGE) as root:
        damage(root)
    status, found, error = verified(loaded, IMAGE)
    assert (status, sorted(found)) == (10, problems)
    assert "1 of 2 layers differ from their tars" in error
    assert IMAGE in error


def test_an_image_that_dockerd_has_not(loaded: Docker) -> None:
    status, _, error = verified(loaded, "nothing")
    assert status == 3
    assert "dockerd has no image nothing:latest" in error


def test_a_store_that_is_not_dockerds(loaded: Docker, folder: Path) -> None:
    store = ["dmthin", "-q", "-y", "--root", str(folder / "store")]
    sizes = ["dm.loopdatasize=1G", "dm.loopmetadatasize=16M", "dm.basesize=64M"]
    subprocess.run(
        [*store, *(word for size in sizes for word in ("--storage-opt", size)), "pool", "create"], check=True
    )
    done = subprocess.run([*store, "image", "verify"], capture_output=True, text=True)
    assert done.returncode == 3
    assert "is not a dockerd's" in done.stderr
    subprocess.run([*store, "pool", "destroy"], check=True)
