"""Locks between threads and processes."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dmthin.errors import NotFound
from dmthin.store.state.locks import Locks, make_lock_file
from tests.support import processes


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    make_lock_file(tmp_path / "lock")
    return Locks(tmp_path / "lock")


def test_a_volume_is_locked_once_even_in_one_process(locks: Locks) -> None:
    with locks.volume(7):
        assert locks.try_volume(7) is None
        with locks.volume(8):
            pass
    lock = locks.try_volume(7)
    assert lock is not None
    lock.release()
    lock.release()


def test_a_lock_dies_with_its_holder(locks: Locks) -> None:
    ready, go = os.pipe()

    def hold() -> None:
        locks.volume(1)
        os.write(go, b"x")
        signal.pause()

    with processes.child(hold):
        os.read(ready, 1)
        assert locks.try_volume(1) is None
    assert locks.try_volume(1) is not None


def test_a_lock_is_given_back_though_a_child_has_its_descriptor(locks: Locks) -> None:
    lock = locks.volume(1)
    wait, end = os.pipe()

    def wait_for_the_end() -> None:
        os.close(end)
        os.read(wait, 1)

    with processes.child(wait_for_the_end):
        lock.release()
        again = locks.try_volume(1)
    os.close(wait)
    os.close(end)
    assert again is not None
    again.release()


def test_the_pool_is_shared_or_owned(locks: Locks) -> None:
    events: list[str] = []
    shared = threading.Event()
    leave = threading.Event()

    def share() -> None:
        with locks.share_pool():
            shared.set()
            leave.wait()
            events.append("shared")

    def own() -> None:
        with locks.own_pool():
            events.append("owned")

    sharers = [threading.Thread(target=share) for _ in range(2)]
    for thread in sharers:
        thread.start()
    shared.wait()
    owner = threading.Thread(target=own)
    owner.start()
    assert events == []
    leave.set()
    for thread in (*sharers, owner):
        thread.join()
    assert events == ["shared", "shared", "owned"]


def test_an_owner_that_waits_goes_before_new_sharers(locks: Locks) -> None:
    order: list[str] = []

    def own() -> None:
        with locks.own_pool():
            order.append("owned")

    def share() -> None:
        with locks.share_pool():
            order.append("shared")

    with locks.share_pool():
        owner = threading.Thread(target=own)
        owner.start()
        while (gate := locks._try(0)) is not None:  # until the owner has it
            gate.release()
            time.sleep(0.001)
        late = threading.Thread(target=share)
        late.start()
        order.append("first")
    owner.join()
    late.join()
    assert order == ["first", "owned", "shared"]


def test_the_lock_of_a_store_that_is_gone(locks: Locks, tmp_path: Path) -> None:
    (tmp_path / "lock").unlink()
    with pytest.raises(NotFound, match="is not a store"):
        locks.volume(1)
