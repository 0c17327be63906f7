"""Locks between threads and processes."""

import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from dmthin import steps
from dmthin.errors import NeedsRepair, NotFound, TimeLimit
from dmthin.kernel import filelock
from dmthin.store.state import lock_waits
from dmthin.store.state.lock_waits import limit_waits
from dmthin.store.state.locks import Lock, Locks, make_lock_file
from enginelib.waiting import until
from tests.support import processes
from tests.support.threads import in_threads


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
    shared = threading.Barrier(3)
    leave = threading.Event()

    def share() -> None:
        with locks.share_pool():
            shared.wait()
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
        until(lambda: _is_taken(locks, 0))  # by the owner: it is the gate to the pool's lock
        late = threading.Thread(target=share)
        late.start()
        order.append("first")
    owner.join()
    late.join()
    assert order == ["first", "owned", "shared"]


def _is_taken(locks: Locks, byte: int) -> bool:
    if (lock := locks._try(byte)) is not None:
        lock.release()
    return lock is None


def test_the_lock_of_a_store_that_is_gone(locks: Locks, tmp_path: Path) -> None:
    (tmp_path / "lock").unlink()
    with pytest.raises(NotFound, match="is not a store"):
        locks.volume(1)


def test_an_owner_that_comes_back_lets_those_go_first_who_wait(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """As trim does, which owns the pool again and again: a container's start must not wait for its end."""
    monkeypatch.setattr(lock_waits, "_GIVE_WAY_SECONDS", 600.0)
    order_read, order_write = os.pipe()
    owned_read, owned_write = os.pipe()

    def own_twice() -> None:
        with locks.own_pool():
            os.write(owned_write, b"x")
            with open(locks._path, "rb+") as file:
                until(lambda: filelock.is_locked(file.fileno(), lock_waits.POOL_WAITERS))
        with locks.own_pool():
            os.write(order_write, b"owned again\n")

    with processes.child(own_twice) as pid:
        assert os.read(owned_read, 1) == b"x"
        with locks.share_pool():
            os.write(order_write, b"shared\n")
        assert processes.outcome(pid) == 0
    os.close(order_write)
    with open(order_read) as order:
        assert order.read().split("\n") == ["shared", "owned again", ""]
    os.close(owned_read)
    os.close(owned_write)


# --- waiting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def patience() -> Iterator[Callable[[float], None]]:
    """Limit the waits of this process during the test."""
    yield limit_waits
    limit_waits(math.inf)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@contextmanager
def held_by_a_child(take: Callable[[], object]) -> Iterator[tuple[int, Callable[[], None]]]:
    """A child that holds what it takes; its pid, and what lets it end."""
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()

    def hold() -> None:
        os.close(end_write)
        held = take()
        os.write(ready_write, b"x")
        os.read(end_read, 1)
        del held

    with processes.child(hold) as pid:
        os.close(end_read)
        assert os.read(ready_read, 1) == b"x"
        yield pid, lambda: os.close(end_write)
        processes.outcome(pid)
    os.close(ready_read)
    os.close(ready_write)


def command_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


LOCKS: dict[str, Callable[[Locks], Lock]] = {
    "the lock of volume 17": lambda locks: locks.volume(17),
    "the suspend lock of volume 17": lambda locks: locks.suspend(17),
    "the base lock": Locks.base,
    "the metadata snapshot lock": Locks.metadata_snapshot,
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_wait_beyond_the_limit_names_the_lock_and_its_holder(
    locks: Locks, patience: Callable[[float], None], name: str
) -> None:
    with held_by_a_child(lambda: LOCKS[name](locks)) as (pid, end):
        patience(0.01)
        with pytest.raises(TimeLimit) as caught:
            LOCKS[name](locks)
        assert caught.value.message == f"waited 0.01 s for {name}, held by {command_name(pid)} (pid {pid})"
        assert "--lock-timeout" in caught.value.hint
        patience(0)
        with pytest.raises(TimeLimit, match="waited 0 s"):
            LOCKS[name](locks)
        patience(math.inf)
        end()
        LOCKS[name](locks).release()


@pytest.mark.parametrize("holds", [Locks.share_pool, Locks.own_pool], ids=["shared", "owned"])
def test_a_wait_for_the_pool_names_its_holder(
    locks: Locks, patience: Callable[[float], None], holds: Callable[[Locks], AbstractContextManager[None]]
) -> None:
    def take() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(holds(locks))
        return stack

    with held_by_a_child(take) as (pid, end):
        patience(0.01)
        with pytest.raises(TimeLimit, match=rf"for the pool lock, held by .* \(pid {pid}\):"), locks.own_pool():
            pass
        if holds is Locks.own_pool:
            with pytest.raises(TimeLimit, match=rf"for the pool lock, held by .* \(pid {pid}\):"), locks.share_pool():
                pass
        else:
            with locks.share_pool():
                pass
        end()
    with locks.own_pool():
        pass


def test_a_long_wait_is_a_warning_that_is_repeated(
    locks: Locks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "_FIRST_WARNING_SECONDS", 0.01)
    monkeypatch.setattr(lock_waits, "_WARNING_SECONDS", 0.01)
    with held_by_a_child(lambda: locks.volume(3)) as (pid, end):
        waiting = threading.Thread(target=lambda: locks.volume(3).release())
        waiting.start()
        until(lambda: len(warnings(caplog)) >= 3)
        end()
        waiting.join()
        holder = rf"held by {re.escape(command_name(os.getpid()))} \(pid {pid}\)"
    for text in warnings(caplog)[:3]:
        assert re.fullmatch(rf"waiting for the lock of volume 3 since \d\d:\d\d:\d\d \(\d+ s\), {holder}", text), text


def test_a_short_wait_warns_of_nothing(locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    with held_by_a_child(lambda: locks.volume(3)) as (_, end):
        waiting = threading.Thread(target=lambda: locks.volume(3).release())
        waiting.start()
        end()
        waiting.join()
    assert warnings(caplog) == []


def test_another_thread_of_this_process_is_called_so(locks: Locks, patience: Callable[[float], None]) -> None:
    patience(0.01)
    with locks.volume(3), pytest.raises(TimeLimit, match=rf"another thread of this process \(pid {os.getpid()}\):"):
        locks.volume(3)


def test_a_child_that_has_inherited_a_lock_is_among_its_holders(
    locks: Locks, patience: Callable[[float], None]
) -> None:
    """As the guard of a suspended volume has."""
    lock = locks.suspend(3)
    with held_by_a_child(lambda: lock) as (pid, end):
        lock.release()
        patience(0.01)
        with pytest.raises(TimeLimit, match=rf"held by .* \(pid {pid}\):"):
            locks.suspend(3)
        end()


def test_a_wait_that_was_given_up_holds_nothing_later(locks: Locks, patience: Callable[[float], None]) -> None:
    threads = threading.active_count()
    with held_by_a_child(lambda: locks.volume(3)) as (_, end):
        descriptors = len(os.listdir("/proc/self/fd"))
        patience(0.01)
        for _ in range(3):
            with pytest.raises(TimeLimit):
                locks.volume(3)
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == descriptors
        end()
    patience(0)
    for _ in range(3):
        locks.volume(3).release()


def test_a_wait_goes_on_where_an_earlier_one_was_given_up(locks: Locks, patience: Callable[[float], None]) -> None:
    with held_by_a_child(lambda: locks.volume(3)) as (_, end):
        patience(0.01)
        with pytest.raises(TimeLimit):
            locks.volume(3)
        patience(math.inf)
        waiting = threading.Thread(target=lambda: locks.volume(3).release())
        waiting.start()
        end()
        waiting.join()
    locks.volume(3).release()


def test_many_threads_and_processes_take_turns(locks: Locks, tmp_path: Path) -> None:
    """Each adds one to a number in a file, which it reads and writes under the lock."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(25):
            with locks.volume(3):
                counter.write_text(str(int(counter.read_text()) + 1))

    def count_in_threads() -> None:
        in_threads(4, lambda _: count())

    pids = [processes.start(count_in_threads) for _ in range(3)]
    assert [processes.outcome(pid) for pid in pids] == [0, 0, 0]
    assert counter.read_text() == "300"


def test_locks_are_traced(locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "dmthin")

    def traced(verbosity: int) -> list[str]:
        caplog.clear()
        steps.trace(verbosity)
        try:
            with locks.share_pool(), locks.volume(7):
                pass
            with held_by_a_child(lambda: locks.volume(3)) as (_, end):
                waiting = threading.Thread(target=lambda: locks.volume(3).release())
                waiting.start()
                if verbosity:
                    until(lambda: "lock: waiting for the lock of volume 3" in caplog.messages)
                end()
                waiting.join()
        finally:
            steps.trace(0)
        return [re.sub(r"\d+\.\d\d ms", "MS", text) for text in caplog.messages]

    waited = ["lock: waiting for the lock of volume 3", "lock: the lock of volume 3 after MS"]
    assert traced(0) == []
    assert traced(steps.STEPS) == waited
    assert traced(steps.REQUESTS) == ["lock: the pool lock, shared", "lock: the lock of volume 7", *waited]


def test_a_lock_file_that_was_lost_is_not_a_store_that_is_not_there(locks: Locks, tmp_path: Path) -> None:
    (tmp_path / "lock").unlink()
    with pytest.raises(NotFound, match="is not a store: make one with: dmthin pool create"):
        locks.base()
    (tmp_path / "ledger.db").touch()
    with pytest.raises(NeedsRepair, match=rf"the lock file {tmp_path}/lock is missing: make it: touch {tmp_path}/lock"):
        locks.base()
