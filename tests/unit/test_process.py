"""The one door to programs, and signals that come at any moment."""

import os
import random
import signal
import threading

import psutil
import pytest

from dmthin.cli.signals import Interrupted, raised_in_main_thread
from dmthin.errors import TimeLimit, ToolFailed, Unavailable
from dmthin.kernel import process
from enginelib.waiting import until


def test_what_a_program_says() -> None:
    done = process.run("cat", stdin="hello\n")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "hello\n", "")
    assert process.run("false", ok=(0, 1)).exit_code == 1


def test_a_failure_carries_the_programs_own_words() -> None:
    with pytest.raises(ToolFailed, match=r"^ls /none failed \(2\): .*cannot access '/none': No such file"):
        process.run("ls", "/none")


def test_a_program_that_is_missing_or_does_not_end() -> None:
    with pytest.raises(Unavailable, match="the program frobnicate is missing"):
        process.run("frobnicate")
    with pytest.raises(TimeLimit, match=r"^sleep infinity did not end within 0\.2 s$"):
        process.run("sleep", "infinity", timeout=0.2)
    until(no_program_runs)


def test_a_signal_at_any_moment_leaves_no_program_and_no_thread() -> None:
    before = set(threading.enumerate())
    for number in range(40):
        with pytest.raises(Interrupted), raised_in_main_thread(lambda: None, silent_afterwards=False):
            moment = random.Random(number).random() * 0.015
            sender = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT))
            sender.start()
            try:
                process.run("sleep", "infinity")
            finally:
                sender.join()
        until(no_program_runs)
    until(lambda: set(threading.enumerate()) <= before)


def no_program_runs() -> bool:
    return not [child for child in psutil.Process().children() if child.name() == "sleep"]
