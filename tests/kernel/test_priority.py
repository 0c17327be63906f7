"""Scheduling priority. A kernel test, since raising it takes a right that root has."""

import os
from concurrent.futures import Future, ThreadPoolExecutor

from dmthin.kernel import priority, process
from dmthin.store.volumes.background import BackgroundQueue


def niceness() -> int:
    """The niceness of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_only_who_answers_goes_first() -> None:
    """The thread does; not this one, nor a program that it starts, nor what is done behind its callers."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(priority.raise_priority).result()
        assert threads.submit(niceness).result() < 0
        assert niceness() == 0
        assert threads.submit(process.run, "nice").result().stdout == "0\n"
        behind = threads.submit(BackgroundQueue, "test").result()
        later: Future[int] = Future()
        behind.later(0, lambda: later.set_result(niceness()))
        assert later.result() == 0
        behind.close()
