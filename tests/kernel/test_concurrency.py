"""Many at once on one store: threads that share it, processes that open it, an administrator beside them."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dmthin.errors import KernelError
from dmthin.pool.thinpool import ThinPool
from dmthin.store.state.group_sync import GroupSync
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import Kind, State
from dmthin.store.store import Store
from dmthin.units import GIB
from enginelib.waiting import until
from tests.support import processes
from tests.support.processes import in_processes
from tests.support.stores import check_store
from tests.support.threads import in_threads


def test_fifty_containers_at_once_from_threads(store: Store, image: str) -> None:
    def create(number: int) -> None:
        store.containers.create(image, f"c{number}")
        (store.containers.mount(f"c{number}") / "me").write_text(str(number))

    in_threads(50, create)
    for number in range(50):
        assert (store.layout.mount_point(f"c{number}") / "me").read_text() == str(number)


def test_snapshots_of_a_mounted_volume_at_once(store: Store, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds the origin at rest, and none lets it go under another's hands."""
    store.containers.create(image, "origin")
    store.containers.mount("origin")
    origin = store.ledger.ready("origin")
    create_snap, suspend = ThinPool.create_snap, Locks.suspend
    arrived: list[int] = []
    at_rest: list[bool] = []

    def create_last(pool: ThinPool, device_id: int, origin_id: int) -> None:
        create_snap(pool, device_id, origin_id)
        until(lambda: len(arrived) == 10)  # all others wait for the origin
        info = store.volumes.info(origin)
        at_rest.append(info is not None and info.suspended)

    def announced(locks: Locks, device_id: int) -> Lock:
        arrived.append(device_id)
        return suspend(locks, device_id)

    monkeypatch.setattr(ThinPool, "create_snap", create_last)
    monkeypatch.setattr(Locks, "suspend", announced)
    in_threads(10, lambda number: store.layers.create(f"s{number}", Kind.CONTAINER, origin))
    assert at_rest == [True] * 10
    until(lambda: (info := store.volumes.info(origin)) is not None and not info.suspended)
    store.containers.unmount("origin")
    check_store(store)


def test_the_origin_of_a_killed_snapshot_goes_on_before_the_next_has_it(
    store: Store, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.containers.create(image, "origin")
    store.containers.mount("origin")
    origin = store.ledger.ready("origin")

    def die(*_: object) -> None:
        (guard,) = psutil.Process().children()
        (store.layout.root.parent / "guard").write_text(str(guard.pid))
        guard.suspend()  # so that it is late
        os.kill(os.getpid(), signal.SIGKILL)

    def create() -> None:
        monkeypatch.setattr(ThinPool, "create_snap", die)
        with Store(store.layout.root) as mine:
            mine.layers.create("cut", Kind.CONTAINER, origin)

    store.ledger.close()
    with processes.child(create) as pid:
        assert processes.outcome(pid) == -signal.SIGKILL
    guard = int((store.layout.root.parent / "guard").read_text())
    suspend, waiting, goes_on = Locks.suspend, threading.Event(), threading.Event()
    too_early: list[bool] = []

    def announced(locks: Locks, device_id: int) -> Lock:
        waiting.set()
        lock = suspend(locks, device_id)
        too_early.append(not goes_on.is_set())
        return lock

    monkeypatch.setattr(Locks, "suspend", announced)
    following = threading.Thread(target=lambda: store.layers.create("next", Kind.CONTAINER, origin))
    following.start()
    try:
        waiting.wait()
        info = store.volumes.info(origin)
        assert info is not None
        assert info.suspended
        assert store.ledger.find("next") is None
        store.pool.extend(data_size=5 * GIB)  # who waits for its turn keeps nobody from giving the pool space
        assert following.is_alive()
    finally:
        goes_on.set()
        os.kill(guard, signal.SIGCONT)
        following.join()
    assert too_early == [False]
    assert store.ledger.ready("next")
    store.containers.unmount("origin")
    check_store(store)


def test_a_removal_that_was_only_committed_is_synced_before_the_pool_hears_of_it(
    store: Store, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would bring back the record of a volume that the pool has no more."""
    store.containers.create(image, "web")

    def remove() -> None:
        monkeypatch.setattr(GroupSync, "wait", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with Store(store.layout.root) as mine:
            mine.containers.remove("web")

    store.ledger.close()
    with processes.child(remove) as pid:
        assert processes.outcome(pid) == -signal.SIGKILL
    assert [volume.state for volume in store.ledger.unfinished()] == [State.REMOVING]
    wait, delete = GroupSync.wait, ThinPool.delete
    order: list[str] = []

    def noted_wait(log: GroupSync) -> None:
        order.append("sync")
        wait(log)

    def noted_delete(pool: ThinPool, device_id: int) -> bool:
        order.append("delete")
        return delete(pool, device_id)

    monkeypatch.setattr(GroupSync, "wait", noted_wait)
    monkeypatch.setattr(ThinPool, "delete", noted_delete)
    store.pool.activate()
    assert order == ["sync", "delete"]
    assert store.ledger.unfinished() == []
    check_store(store)


def test_a_volume_whose_intent_could_not_be_synced_is_rolled_back(
    store: Store, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is not held by the process that has failed to make it, which goes on."""

    def fail(_: GroupSync) -> None:
        raise KernelError("no sync", errno=errno.EIO)

    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(GroupSync, "wait", fail)
        with pytest.raises(KernelError, match="no sync"):
            store.containers.create(image, "web")
    assert [volume.state for volume in store.ledger.unfinished()] == [State.MAKING]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    store.containers.create(image, "web")
    assert store.ledger.unfinished() == []
    check_store(store)


def test_processes_work_side_by_side_while_the_pool_grows_and_is_trimmed(store: Store, image: str) -> None:
    root = store.layout.root
    store.ledger.close()

    def worker(number: int) -> Callable[[Store], None]:
        def work(store: Store) -> None:
            for turn in range(6):
                name = f"w{number}-{turn}"
                store.containers.create(image, name)
                place = store.containers.mount(name)
                (place / "data").write_bytes(bytes([number]) * 300_000)
                assert (place / "etc/motd").read_text() == "hello\n"
                store.containers.unmount(name)
                if turn % 2:
                    store.images.commit(name, f"i{number}-{turn}")
                store.containers.remove(name)

        return work

    def administrator(store: Store) -> None:
        for turn in range(3):
            store.pool.extend(data_size=(5 + turn) * GIB)
            store.pool.trim()
            store.pool.usage()

    in_processes(root, *(worker(number) for number in range(4)), administrator)
    with Store(root) as now:
        assert now.pool.status().data_size == 7 * GIB
        assert sum(volume.kind == "image" for volume in now.ledger.volumes()) == 1 + 4 * 3
        check_store(now)


def test_one_name_has_one_winner(store: Store, image: str) -> None:
    root = store.layout.root
    store.ledger.close()

    def race(store: Store) -> None:
        from dmthin.errors import AlreadyExists

        try:
            store.containers.create(image, "web")
        except AlreadyExists:
            (root.parent / f"lost-{os.getpid()}").touch()

    in_processes(root, *[race] * 6)
    assert len(list(root.parent.glob("lost-*"))) == 5
    assert len([volume for volume in store.ledger.volumes() if volume.name == "web"]) == 1


def test_one_base_is_made_by_one_of_many(store: Store, tree: Path) -> None:
    root = store.layout.root
    store.ledger.close()

    def importing(number: int) -> Callable[[Store], object]:
        return lambda store: store.images.import_(f"image{number}", tree)

    in_processes(root, *(importing(number) for number in range(4)))
    assert [volume.name for volume in store.ledger.volumes() if volume.kind == "base"] == ["@base/ext4/256M"]
