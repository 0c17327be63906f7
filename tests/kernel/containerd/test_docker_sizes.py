"""Containers of a dockerd on containerd get the size that they were created with, at the Mounts of their start."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from dmthin.errors import InvalidValue
from dmthin.store.store import Store
from dmthin.units import MIB
from enginelib.snapshots import Snapshots
from tests.support.docker_records import record_container, record_of
from tests.support.snapshotters import OPTIONS, Daemon, collect_garbage, layer, mounted, refused, serving
from tests.support.stores import scratch_folder

ID = "7e" * 32
KEY = f"moby/3/{ID}"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
IMAGE = 320 * MIB
"""The size of all images."""


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with scratch_folder() as folder:
        words, options = ("--docker-root", str(folder / "docker")), (*OPTIONS, f"dm.fs={request.param}")
        with serving(folder, options=options, words=words) as daemon:
            yield daemon


@pytest.fixture
def snapshots(daemon: Daemon, docker: Path, place: Path) -> Iterator[Snapshots]:
    """A client; there is a container's snapshot, which nobody has mounted."""
    record_of(docker, KEY).unlink(missing_ok=True)
    with daemon.client() as client:
        layer(client, f"moby/2/{ID}-init", "", place, file="of the image")
        client.prepare(KEY, f"moby/2/{ID}-init")
        yield client
        collect_garbage(client)


@pytest.fixture
def docker(daemon: Daemon) -> Path:
    """dockerd's data root."""
    return daemon.root.with_name("docker")


@pytest.fixture
def place(daemon: Daemon) -> Path:
    return daemon.root.with_name("mnt")


def size_at(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_blocks * status.f_frsize


def volume_size(daemon: Daemon) -> int:
    with Store(daemon.root) as store:
        return store.snapshots.get("dmthin", KEY).volume.size


def test_it_is_grown_once_its_record_is_there(daemon: Daemon, snapshots: Snapshots, docker: Path, place: Path) -> None:
    with mounted(snapshots.mounts(KEY), place) as root:
        assert size_at(root) <= IMAGE
        (root / "more").write_text("written at docker create")
    record_container(docker, KEY, {"size": "400M"})
    with mounted(snapshots.mounts(KEY), place) as root:
        assert IMAGE < size_at(root) <= 400 * MIB
        assert {path.name: path.read_text() for path in root.iterdir()} == {
            "file": "of the image",
            "more": "written at docker create",
        }
    said = daemon.log.read_text()
    assert f"grew the active snapshot '{KEY}' to 400M" in said
    snapshots.mounts(KEY)
    assert daemon.log.read_text() == said, "there is nothing left to do"


def test_it_is_grown_while_it_is_mounted(snapshots: Snapshots, docker: Path, place: Path) -> None:
    before = snapshots.mounts(KEY)
    with mounted(before, place) as root, (root / "open").open("w") as file:
        record_container(docker, KEY, {"size": "400M"})
        assert snapshots.mounts(KEY) == before
        assert IMAGE < size_at(root) <= 400 * MIB
        file.write("goes on")


def test_it_is_never_made_smaller(daemon: Daemon, snapshots: Snapshots, docker: Path) -> None:
    with Store(daemon.root) as store:
        store.containers.resize(store.snapshots.get("dmthin", KEY).volume.name, 512 * MIB)
    record_container(docker, KEY, {"size": "400M"})
    snapshots.mounts(KEY)
    assert volume_size(daemon) == 512 * MIB


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("319M", "size 319M is less than the 320M that it was made with"),
        ("large", "'large' is not a size"),
        ("9000P", "more than any device"),
        ("8000P", "too large for"),
    ],
)
def test_a_size_that_it_cannot_have_fails_the_start(
    daemon: Daemon, snapshots: Snapshots, docker: Path, place: Path, option: str, words: str
) -> None:
    record_container(docker, KEY, {"size": option})
    with refused(INVALID, f"dockerd's container {ID}: .*{words}"):
        snapshots.mounts(KEY)
    assert volume_size(daemon) == IMAGE
    snapshots.stat(KEY)
    record_container(docker, KEY, {"size": "320M"})
    with mounted(snapshots.mounts(KEY), place) as root:
        assert (root / "file").read_text() == "of the image"


def test_many_at_once(daemon: Daemon, snapshots: Snapshots, docker: Path) -> None:
    record_container(docker, KEY, {"size": "400M"})

    def ask(_: int) -> object:
        with daemon.client() as client:
            return client.mounts(KEY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers == answers[:1] * 8
    assert volume_size(daemon) == 400 * MIB


def test_without_the_option_nothing_is_read(daemon: Daemon, docker: Path, scratch: Path) -> None:
    record_container(docker, KEY, {"size": "400M"})
    with serving(scratch) as other, other.client() as client:
        client.prepare(KEY)
        client.mounts(KEY)
        assert volume_size(other) == IMAGE
        client.remove(KEY)


def test_a_larger_one_meanwhile_is_large_enough(daemon: Daemon, snapshots: Snapshots) -> None:
    with Store(daemon.root) as store:
        read_before = store.snapshots.get("dmthin", KEY)
        name = read_before.volume.name
        store.containers.resize(name, 512 * MIB)
        assert store.snapshots.ensure_size(read_before, 400 * MIB).volume == store.containers.get(name)
        with pytest.raises(InvalidValue, match="cannot shrink"):
            store.containers.resize(name, 400 * MIB)
