"""Snapshots as engines use them: any volume may have children; mounts are counted, and the count outlives a process."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from dmthin.errors import AlreadyExists, InvalidValue, NotFound
from dmthin.kernel import mount
from dmthin.pool import volume
from dmthin.pool.guard import Guard
from dmthin.store.state.model import Kind, State
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import GIB, MIB
from enginelib.waiting import until
from tests.support import processes
from tests.support.threads import in_threads


@pytest.fixture
def layer(store: Store) -> str:
    """The name of a first layer with one file."""
    store.layers.create_first("layer", Kind.IMAGE)
    (store.layers.acquire("layer") / "file").write_text("below\n")
    store.layers.release("layer")
    return "layer"


@pytest.fixture
def daemon(store: Store) -> Iterator[Store]:
    """The same store as a daemon has it open, with a background queue."""
    queue = BackgroundQueue("test")
    with Store(store.layout.root, background=Background(queue)) as daemon:
        yield daemon
        queue.close()


def child(store: Store, name: str, parent: str, size: int | None = None) -> None:
    store.layers.create(name, Kind.CONTAINER, store.ledger.ready(parent), size)


def is_mounted(place: Path) -> bool:
    return any(entry.target == str(place) for entry in mount.table())


def names(root: int) -> list[str]:
    """What a directory that is open with O_PATH holds."""
    fd = os.open(".", os.O_RDONLY, dir_fd=root)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


@contextmanager
def sitting_in(folder: Path) -> Iterator[None]:
    """A process whose current folder is this one."""
    with subprocess.Popen(["sleep", "100"], cwd=folder) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def elsewhere(script: str) -> Iterator[None]:
    """A shell script in a mount namespace of its own, from its first line of output on."""
    line = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def test_any_volume_has_children_and_is_written(store: Store, layer: str) -> None:
    child(store, "init", layer)
    (store.layers.acquire("init") / "file").write_text("changed\n")
    store.layers.release("init")
    child(store, "web", "init")
    place = store.layers.acquire("web")
    assert (place / "file").read_text() == "changed\n"
    assert (store.layers.acquire(layer) / "file").read_text() == "below\n"
    store.layers.remove("init")  # mounted or not, with children or not: its snapshots do not need it
    assert (place / "file").read_text() == "changed\n"
    assert store.ledger.ready("web").parent == store.ledger.ready(layer).device_id


def test_a_mount_lasts_until_everybody_has_let_go(store: Store, layer: str) -> None:
    place = store.layers.acquire(layer)
    assert store.layers.acquire(layer) == place
    store.layers.release(layer)
    assert is_mounted(place)
    store.layers.release(layer)
    assert not is_mounted(place)
    assert not place.exists()
    assert store.volumes.info(store.ledger.ready(layer)) is None
    store.layers.release(layer)
    store.layers.release("nothing")
    assert is_mounted(store.layers.acquire(layer)), "letting go too often counts for nothing"


def test_the_count_outlives_the_process(store: Store, layer: str) -> None:
    place = store.layers.acquire(layer)
    store.layers.acquire(layer)
    with Store(store.layout.root) as other:
        other.layers.release(layer)
        assert is_mounted(place)
        other.layers.acquire(layer)
        other.layers.forget_lost_uses()
        other.layers.release(layer)
    assert not is_mounted(place)


def test_a_count_without_its_mount_means_nothing(store: Store, layer: str) -> None:
    place = store.layers.acquire(layer)
    store.layers.acquire(layer)
    mount.unmount(place)  # what a restart of the machine does
    store.layers.release(layer)
    store.layers.acquire(layer)
    store.layers.release(layer)
    assert not is_mounted(place)


def test_many_at_once_count_right(store: Store, layer: str) -> None:
    def use(_: int) -> None:
        for _ in range(5):
            assert (store.layers.acquire(layer) / "file").read_text() == "below\n"
            store.layers.release(layer)

    store.layers.acquire(layer)
    in_threads(6, use)
    assert store.ledger.ready(layer).uses == 1
    store.layers.release(layer)


def test_a_busy_mount_is_detached_and_its_device_goes_with_the_last_user(
    store: Store, layer: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = store.layers.acquire(layer)
    with sitting_in(place):
        store.layers.release(layer)
        assert not is_mounted(place)
        assert "sleep (pid" in caplog.text
        info = store.volumes.info(store.ledger.ready(layer))
        assert info is not None
        assert info.deferred_remove
        assert (store.layers.acquire(layer) / "file").exists(), "it can be mounted again meanwhile"
        store.layers.release(layer)
    store.pool.activate()
    assert store.volumes.info(store.ledger.ready(layer)) is None


def test_a_mount_that_leaked_into_another_namespace_is_taken_back(store: Store, layer: str) -> None:
    store.layers.acquire(layer)
    with elsewhere("echo ready; exec sleep 100"):
        store.layers.release(layer)
        assert store.volumes.info(store.ledger.ready(layer)) is None


def test_a_leak_that_cannot_be_taken_back_is_named(store: Store, layer: str, caplog: pytest.LogCaptureFixture) -> None:
    place = store.layers.acquire(layer)
    with elsewhere(f"mount --bind {place} /mnt; echo ready; exec sleep 100"):
        store.layers.release(layer)
        assert "mounted at /mnt in its mount namespace" in caplog.text
    store.pool.activate()
    until(lambda: store.volumes.info(store.ledger.ready(layer)) is None)  # the kernel removes it by a work queue


def test_a_busy_volume_is_removed_with_its_last_user(store: Store, layer: str) -> None:
    child(store, "web", layer)
    with sitting_in(store.layers.acquire("web")):
        store.layers.remove("web")
        store.layers.remove("web")
        child(store, "web", layer)
        assert len(store.ledger.unfinished()) == 1
    store.pool.activate()
    assert store.ledger.unfinished() == []
    store.layers.remove("nothing")


def test_what_may_not_be_deferred_is_an_error(store: Store, layer: str) -> None:
    options = ("dm.use_deferred_removal=false", "dm.use_deferred_deletion=false")
    with Store(store.layout.root, options) as strict:
        place = strict.layers.acquire(layer)
        with sitting_in(place), pytest.raises(Exception, match=r"in use by sleep \(pid"):
            strict.layers.remove(layer)
        strict.layers.remove(layer)
    assert store.ledger.find(layer) is None


def test_a_daemon_leaves_a_device_for_a_moment(store: Store, layer: str, daemon: Store) -> None:
    place = daemon.layers.acquire(layer)
    (place / "more").write_text("written before the last close\n")
    daemon.layers.release(layer)
    assert store.volumes.info(store.ledger.ready(layer)) is not None
    child(daemon, "web", layer)
    with daemon.layers.opened("web") as root:
        assert names(root) == ["file", "more"]
    daemon.layers.acquire(layer)
    daemon.cleanup.drain()
    assert is_mounted(place), "what is in use again stays"
    daemon.layers.release(layer)
    daemon.cleanup.drain()
    assert store.volumes.info(store.ledger.ready(layer)) is None
    assert store.volumes.info(store.ledger.ready("web")) is None


def test_a_daemon_removes_after_it_has_answered(store: Store, layer: str, daemon: Store) -> None:
    child(daemon, "web", layer)
    daemon.layers.release("web")
    daemon.layers.acquire("web")
    daemon.layers.remove("web")
    assert [volume.state for volume in store.ledger.unfinished()] == [State.REMOVING]
    child(daemon, "web", layer)  # nor does this change take the rest out of the thread's hands
    assert [volume.state for volume in store.ledger.unfinished()] == [State.REMOVING]
    daemon.cleanup.drain()
    assert store.ledger.unfinished() == []
    assert [volume.name for volume in store.ledger.volumes() if volume.kind is not Kind.BASE] == [layer, "web"]


def test_what_a_daemon_that_was_killed_had_before_it_is_done_by_the_next(store: Store, layer: str) -> None:
    def remove_and_die() -> None:
        with Store(store.layout.root, background=Background(BackgroundQueue("own"))) as own:
            child(own, "web", layer)
            own.layers.acquire(layer)
            own.layers.release(layer)
            own.layers.remove("web")
            os.kill(os.getpid(), signal.SIGKILL)

    assert processes.run(remove_and_die) == -signal.SIGKILL
    assert len(store.ledger.unfinished()) == 1
    store.cleanup.deactivate_idle(Kind.IMAGE)
    assert store.volumes.info(store.ledger.ready(layer)) is None
    assert store.ledger.unfinished() == []


def test_a_snapshot_is_whole_whoever_mounts_its_origin_meanwhile(store: Store, layer: str, daemon: Store) -> None:
    def write() -> None:
        for number in range(12):
            place = daemon.layers.acquire(layer)
            for name in ("a", "b"):
                (place / name).write_text(f"{number}" * 9000)
            daemon.layers.release(layer)

    writer = threading.Thread(target=write)
    writer.start()
    made = 0
    while writer.is_alive():
        child(daemon, f"web{made}", layer)
        made += 1
    writer.join()
    daemon.cleanup.drain()
    for number in range(made):
        volume = store.ledger.ready(f"web{number}")
        info = store.volumes.activate(volume)
        subprocess.run(["e2fsck", "-fn", info.node], check=True, stdout=subprocess.DEVNULL)
        store.volumes.deactivate(volume)
    assert made > 3


def test_own_work_needs_no_mount_and_hinders_nobody(store: Store, layer: str) -> None:
    with store.layers.opened(layer) as root:
        assert names(root) == ["file"]
        assert mount.of_device(os.fstat(root).st_dev) == []
        place = store.layers.acquire(layer)
        with store.layers.opened(layer) as again:
            (place / "more").write_text("")
            assert names(again) == names(root) == ["file", "more"]
        child(store, "web", layer)
        store.layers.release(layer)
        assert not is_mounted(place)
        assert names(root) == ["file", "more"]
    assert store.volumes.info(store.ledger.ready(layer)) is None
    with store.layers.opened(layer):
        store.layers.remove(layer)
        assert store.ledger.find(layer) is None
    store.pool.activate()
    assert store.ledger.unfinished() == []


def test_an_origin_whose_device_goes_just_now(store: Store, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = ExitStack()
    user.enter_context(sitting_in(store.layers.acquire(layer)))
    store.layers.release(layer)

    class LateGuard(Guard):
        """Comes when the device that was there has gone with its last user."""

        def __enter__(self) -> Self:
            user.close()
            until(lambda: store.volumes.info(store.ledger.ready(layer)) is None)
            return super().__enter__()

    monkeypatch.setattr(volume, "Guard", LateGuard)
    child(store, "web", layer)
    assert (store.layers.acquire("web") / "file").read_text() == "below\n"


def test_size(store: Store, layer: str) -> None:
    child(store, "large", layer, GIB)
    place = store.layers.acquire("large")
    figures = os.statvfs(place)
    assert figures.f_blocks * figures.f_frsize > 900 * MIB
    child(store, "same", "large", GIB)
    with pytest.raises(InvalidValue, match="256M is less than the 1G of the container large"):
        child(store, "small", "large", 256 * MIB)
    with pytest.raises(NotFound):
        child(store, "orphan", "nothing")
    with pytest.raises(AlreadyExists):
        store.layers.create_first("large", Kind.IMAGE)


def test_mount_options_of_one_time(store: Store, layer: str) -> None:
    place = store.layers.acquire(layer, "ro,noexec")
    (entry,) = [entry for entry in mount.table() if entry.target == str(place)]
    assert {"ro", "noexec"} <= set(entry.options.split(","))


def test_unmount_all(store: Store, layer: str) -> None:
    child(store, "web", layer)
    store.layers.acquire("web")
    store.layers.acquire("web")
    store.layers.acquire(layer)
    assert len(store.layers.mounted()) == 2
    store.layers.unmount_all()
    assert store.layers.mounted() == []
    store.pool.deactivate()
