"""Work behind callers: in order of its time, bounded, none of it lost."""

import threading
import time
from collections.abc import Iterator

import pytest

from dmthin.errors import Unavailable
from dmthin.store.volumes.background import BackgroundQueue, InlineQueue
from enginelib.waiting import until


@pytest.fixture
def behind() -> Iterator[BackgroundQueue]:
    behind = BackgroundQueue("test", most=3)
    yield behind
    behind.close()


def test_the_caller_does_it_himself_and_gets_its_errors() -> None:
    def fail() -> None:
        raise Unavailable("no pool")

    with pytest.raises(Unavailable):
        InlineQueue().later(1000, fail)


def test_it_is_done_in_another_thread_by_its_time(behind: BackgroundQueue) -> None:
    done: list[str] = []
    times: list[float] = []
    goes_on = threading.Event()

    def do(name: str) -> None:
        done.append(name)
        times.append(time.monotonic())

    behind.later(0, goes_on.wait)  # type: ignore[arg-type]
    begun = time.monotonic()
    behind.later(0.3, lambda: do("second"))
    behind.later(0.1, lambda: do(threading.current_thread().name))
    assert done == []
    goes_on.set()
    until(lambda: len(times) == 2)
    assert done == ["test-queue", "second"]
    assert times[0] >= begun + 0.1
    assert times[1] >= begun + 0.3


def test_where_no_thread_can_be_started_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    queue = BackgroundQueue("test")
    done: list[str] = []
    queue.later(1000, lambda: done.append(threading.current_thread().name))
    assert done == [threading.current_thread().name]
    assert not queue.drain()
    queue.close()


def test_draining_does_it_before_its_time(behind: BackgroundQueue) -> None:
    done: list[int] = []
    behind.later(1000, lambda: done.append(2))
    behind.later(900, lambda: done.append(1))
    behind.drain()
    assert done == [1, 2]
    behind.later(1000, lambda: done.append(3))
    assert done == [1, 2], "what comes afterwards has its time again"


def test_draining_waits_for_what_is_under_way(behind: BackgroundQueue) -> None:
    begun, goes_on, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        goes_on.wait()
        done.append("work")

    behind.later(0, work)
    begun.wait()
    seen: list[list[str]] = []
    draining = threading.Thread(target=lambda: seen.append([*done]) if behind.drain() else None)
    draining.start()
    until(lambda: behind._hurried == 1)
    assert seen == []
    goes_on.set()
    draining.join()
    assert seen == [["work"]]


def test_who_brings_too_much_does_it_himself(behind: BackgroundQueue) -> None:
    done: list[str] = []
    for _ in range(3):
        behind.later(1000, lambda: done.append("later"))
    behind.later(1000, lambda: done.append("now"))
    assert done == ["now"]
    behind.close()
    assert done == ["now", "later", "later", "later"]
    behind.close()
    behind.later(1000, lambda: done.append("after the end"))
    assert done[-1] == "after the end"


def test_a_failure_is_told_and_stops_nothing(behind: BackgroundQueue, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def fail() -> None:
        raise Unavailable("no pool")

    behind.later(0, fail)
    behind.later(0, lambda: done.append(1 // 0))
    behind.later(0, lambda: done.append(1))
    behind.drain()
    assert done == [1]
    assert "no pool" in caplog.text
    assert "ZeroDivisionError" in caplog.text
