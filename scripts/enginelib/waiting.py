"""Waiting for a state that takes a moment to come about, however slow the machine is."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300.0
"""Seconds after which something that takes a few counts as hung."""

_PAUSE = 0.02
_POLLS_BEFORE_AGAIN = 250


def until(condition: Callable[[], object], *, again: Callable[[], object] | None = None) -> None:
    """Wait for a condition. Raises AssertionError if it does not come true within PATIENCE.

    `again` is called every 250 polls, for what may have to be asked for more than once.
    """
    give_up = time.monotonic() + PATIENCE
    polls = 0
    while not condition():
        assert time.monotonic() < give_up, f"this did not come true within {PATIENCE:g} s"
        time.sleep(_PAUSE)
        polls += 1
        if again is not None and polls % _POLLS_BEFORE_AGAIN == 0:
            again()


def listens(path: Path) -> bool:
    """Whether a process accepts connections at a socket: a while after the socket's file is there."""
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0
