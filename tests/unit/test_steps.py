"""The trace of steps and ioctls, and the edges at which a test can end a process."""

import logging
import os
import re
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmthin import steps
from dmthin.errors import InUse
from dmthin.kernel import block
from dmthin.kernel.ioctl import ioctl
from dmthin.steps import REQUESTS, STEPS, held_back, step, traced
from tests.support import processes


class Unnamed:
    """A word of a step that nothing may ask for."""

    def __str__(self) -> str:
        raise AssertionError("the name of a step was put together though nobody listens")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "dmthin")
    yield
    steps.arm(0)
    steps.trace(0)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was traced until now, durations as `MS`."""
    return [re.sub(r"\d+\.\d\d ms", "MS", record.getMessage()) for record in caplog.records]


def test_nothing_is_traced_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with step("mount", Unnamed()), traced("ledger begin", Unnamed()):
        pass
    block.make_sparse(tmp_path / "file", 4096)
    with block.opened(tmp_path / "file") as fd, pytest.raises(OSError, match="ioctl"):
        ioctl(fd, termios.TIOCGWINSZ, bytes(8), Unnamed(), Unnamed())
    assert lines(caplog) == []


def test_a_step_is_traced_with_its_duration(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    steps.trace(STEPS)
    with step("dm message", "pool", "create_snap 5 3"), traced("inner", 7):
        assert lines(caplog) == []
    block.make_sparse(tmp_path / "file", 4096)
    assert lines(caplog) == [
        "step: inner 7 (MS)",
        "step: dm message pool create_snap 5 3 (MS)",
        f"step: make {tmp_path}/file (MS)",
    ]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    steps.trace(0)
    with step("dm remove", Unnamed()):
        pass
    assert len(lines(caplog)) == 3


def test_a_step_that_fails_says_why(caplog: pytest.LogCaptureFixture) -> None:
    steps.trace(STEPS)
    with pytest.raises(InUse), step("dm remove", "web"):
        raise InUse("it is open", hint="close it")
    with pytest.raises(KeyboardInterrupt), step("mkfs", "/dev/dm-1"):
        raise KeyboardInterrupt
    assert lines(caplog) == [
        "step: dm remove web failed: it is open: close it (MS)",
        "step: mkfs /dev/dm-1 failed: KeyboardInterrupt (MS)",
    ]


def test_ioctls_are_traced_at_the_second_level(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    steps.trace(STEPS)
    assert ioctl(reading, termios.FIONREAD, bytes(4), "FIONREAD", "pipe") == b"\3\0\0\0"
    assert lines(caplog) == []
    steps.trace(REQUESTS)
    buffer = bytearray(4)
    assert ioctl(reading, termios.FIONREAD, buffer, "FIONREAD", "pipe", 0x800) == 0
    assert buffer == b"\3\0\0\0"
    with pytest.raises(OSError, match="ioctl"):
        ioctl(reading, termios.TIOCGWINSZ, bytes(8), "TIOCGWINSZ")
    assert lines(caplog) == ["ioctl: FIONREAD pipe flags=0x800 (MS)", "ioctl: TIOCGWINSZ failed: ENOTTY (MS)"]
    os.close(reading)
    os.close(writing)


def test_lines_are_held_back_while_a_device_is_suspended(caplog: pytest.LogCaptureFixture) -> None:
    steps.trace(STEPS)
    with pytest.raises(InUse), held_back():
        with step("first"), held_back(), step("second"):
            pass
        assert lines(caplog) == []
        raise InUse("whatever ends the block")
    assert lines(caplog) == ["step: second (MS)", "step: first (MS)"]
    with step("third"):
        pass
    assert lines(caplog)[2:] == ["step: third (MS)"]


def test_a_listener_hears_of_both_edges_of_a_step_and_of_none_of_what_is_only_traced() -> None:
    edges: list[str] = []
    steps.arm(0, edges.append)
    with step("mount", Path("/mnt/a")), traced("ledger begin", "x"):
        pass
    with pytest.raises(InUse), step("unmount", Path("/mnt/a")):
        raise InUse("busy")
    steps.arm(0)
    with step("mount", Unnamed()):
        pass
    assert edges == ["before mount /mnt/a", "after mount /mnt/a", "before unmount /mnt/a"]


@pytest.mark.parametrize("edge", [1, 2, 3, 4])
def test_an_armed_process_dies_at_its_edge(tmp_path: Path, edge: int) -> None:
    def write() -> None:
        steps.arm(edge)
        for name in ("a", "b"):
            with step("make", name):
                (tmp_path / name).touch()

    assert processes.run(write) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"][: edge // 2]


def test_an_armed_process_that_comes_to_its_end_lives() -> None:
    def pass_two() -> None:
        steps.arm(3)
        with step("make"):
            pass

    assert processes.run(pass_two) == 0
