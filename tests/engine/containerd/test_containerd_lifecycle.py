"""Daemons that are restarted or killed in the middle of their work, and a machine that goes down."""

import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from dmthin.store.state.model import SnapshotKind
from dmthin.units import MIB
from enginelib.daemons import Failed, tar_of
from enginelib.snapshots import Snapshots
from enginelib.waiting import PATIENCE, listens, until
from tests.engine.containerd.conftest import IMAGE
from tests.support.archives import oci_archive
from tests.support.containerd import DMTHIN, ROOTED, Containerd

OTHER = "docker.io/library/other:1"
FILES = 3000
HTTP2_SETTINGS = 4
"""The type of a server's first frame (RFC 9113)."""

NOTE = "containerd.io/snapshot/note"


@pytest.fixture(scope="module")
def other(mini: bytes) -> bytes:
    """An image that shares no layer with the one that is always there."""
    return oci_archive(OTHER, [tar_of({"first": b""}), mini])


def task_state(containerd: Containerd, name: str) -> tuple[int, str]:
    """Process id and state of a container."""
    lines = containerd("tasks", "ls").splitlines()[1:]
    return {task: (int(pid), state) for task, pid, state in map(str.split, lines)}[name]


@pytest.mark.parametrize("first", ["dmthin", "containerd"])
def test_containers_go_on_while_both_daemons_restart(containerd: Containerd, first: str) -> None:
    """The first one is stopped, the other is killed."""
    containerd.background(IMAGE, "web")
    pid, _ = task_state(containerd, "web")
    daemons = [containerd.dmthin, containerd.containerd]
    if first == "containerd":
        daemons.reverse()
    for daemon, number in zip(daemons, (signal.SIGTERM, signal.SIGKILL), strict=True):
        daemon.end(number)
    Path(f"/proc/{pid}/root/srv/meanwhile").write_text("on\n")
    for daemon in daemons:
        daemon.start()
    containerd.await_answers()
    assert task_state(containerd, "web") == (pid, "RUNNING")
    assert containerd.execute("web", "cat /srv/meanwhile") == "on\n"
    assert containerd.container(IMAGE, "cat", "/srv/new") == "of the second\n"


def test_a_machine_that_goes_down_and_comes_up_again(containerd: Containerd) -> None:
    containerd.background(IMAGE, "web")
    containerd.execute("web", "echo kept > /srv/kept")
    containerd.end_task("web")
    containerd.stop()
    with containerd.store() as store:
        store.pool.deactivate()
    containerd.start()
    containerd("tasks", "start", "-d", "--null-io", "web")
    assert containerd.execute("web", "cat /srv/kept /srv/new") == "kept\nof the second\n"


def test_dmthin_answers_a_connection_before_its_pool_is_up(containerd: Containerd) -> None:
    """containerd waits a second for that, and longer for the answer to a call; a pool may have to be checked first."""
    assert containerd.dmthin.end() == 0
    with ThreadPoolExecutor() as pool, Snapshots(containerd.proxy) as client:
        with containerd.store() as store, store.locks.own_pool():
            containerd.dmthin.start()
            until(lambda: listens(containerd.proxy))
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(str(containerd.proxy))
                assert connection.recv(9, socket.MSG_WAITALL)[3] == HTTP2_SETTINGS
            listing = pool.submit(client.list)
        assert len(listing.result()) == len(containerd.kept())


def test_containerd_killed_during_an_unpack(containerd: Containerd, mini: bytes, tmp_path: Path) -> None:
    many = tar_of({f"d{number % 30}/f{number}": b"x" * 2000 for number in range(FILES)})
    image = oci_archive(OTHER, [mini, many])
    archive = tmp_path / "image.tar"
    archive.write_bytes(image)
    importing = containerd.begin("images", "import", "--snapshotter", DMTHIN, str(archive))
    until(lambda: SnapshotKind.ACTIVE in [snapshot.kind for snapshot in containerd.kept()])
    containerd.containerd.end(signal.SIGKILL)
    importing.communicate(timeout=PATIENCE)
    assert importing.returncode != 0
    assert [snapshot.kind for snapshot in containerd.kept()].count(SnapshotKind.ACTIVE) == 1
    containerd.start()
    containerd("leases", "delete", "--sync", *containerd("leases", "ls", "-q").split())  # of the import, for a day
    containerd.load(image)
    said = containerd.container(OTHER, "sh", "-c", "find / -xdev -name 'f[0-9]*' | busybox wc -l")
    assert said.split() == [str(FILES)]
    containerd("images", "rm", "--sync", OTHER)


def dies(containerd: Containerd, order: str, action: Callable[[], object]) -> None:
    """Let dmthin die at an edge within a call that an action brings about, and start it anew."""
    containerd.orders.write_text(order)

    def act() -> None:
        with suppress(Failed, grpc.RpcError):
            action()

    act()
    # containerd's collector forgets what is removed while it runs: then it is asked again.
    until(lambda: not containerd.dmthin.runs, again=act)
    assert containerd.dmthin.end() == -signal.SIGKILL
    containerd.start()


def works(containerd: Containerd, other: bytes) -> None:
    """The image that a test has tried before is imported, runs and goes."""
    containerd.load(other)
    assert containerd.container(OTHER, "cat", "/etc/motd", "/first") == "hello\n"
    containerd("images", "rm", "--sync", OTHER)
    containerd.await_nothing_unfinished()


def test_dmthin_killed_while_an_image_is_imported(containerd: Containerd, other: bytes) -> None:
    """At the intent, at the end of a first snapshot, and at both sides of the one step that a commit is."""
    for order in ("Prepare 2", "Prepare 12", "Commit 1", "Commit 2"):
        dies(containerd, order, lambda: containerd.load(other))
    works(containerd, other)


def test_dmthin_killed_while_a_container_starts(containerd: Containerd, other: bytes) -> None:
    """Once the pool has the snapshot, once its device is there, and when containerd asks for the mount again."""
    for order in ("Prepare 4", "Prepare 10", "Mounts 1"):
        dies(containerd, order, lambda: containerd.container(IMAGE, "true"))
    works(containerd, other)


def test_dmthin_killed_while_it_is_asked(containerd: Containerd, other: bytes, chain: list[str]) -> None:
    """Views, mounts of a device that must be made again, use (with the pool's metadata held), labels."""
    with containerd.snapshots() as client:
        client.prepare("active", chain[-1], ROOTED)
        client.prepare("more", chain[-1], ROOTED)
        client.commit("committed", "more", ROOTED)
        for order in ("View 4", "View 12"):
            dies(containerd, order, lambda: client.view("view", chain[-1], ROOTED))
        (view,) = client.view("view", chain[-1], ROOTED)
        assert "ro" in view.options
        with containerd.store() as store:
            (active,) = (snapshot for snapshot in store.snapshots.all(DMTHIN) if snapshot.key.endswith("/active"))
            assert store.volumes.deactivate(active.volume)
        dies(containerd, "Mounts 2", lambda: client.mounts("active"))
        assert Path(client.mounts("active")[0].source).is_block_device()
        for order in ("Usage 2", "Usage 4"):
            dies(containerd, order, lambda: client.usage("committed"))
        assert client.usage("committed").size < MIB
        for order in ("Update 1", "Update 2"):
            dies(containerd, order, partial(client.update, "active", {NOTE: order}, [f"labels.{NOTE}"]))
        assert client.update("active", {NOTE: "last"}, [f"labels.{NOTE}"]).labels[NOTE] == "last"
        for key in ("active", "view", "committed"):
            client.remove(key)
    works(containerd, other)


def test_dmthin_killed_while_it_removes(containerd: Containerd, other: bytes) -> None:
    """At both sides of the step after which a snapshot is gone, and in the work that is left then."""
    for order in ("Remove 1", "Remove 2", "BackgroundQueue 3", "BackgroundQueue 5"):
        dies(containerd, order, containerd.collect_garbage)
    works(containerd, other)
