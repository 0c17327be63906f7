"""Waiting for something that takes a moment, however slow the machine is."""

import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds until something that takes a few counts as hung."""


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for a condition."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "this never came true"
        time.sleep(0.02)
