"""Who goes first where processors are short: setpriority(2), which on Linux is each thread's own and its children's."""

import os
from contextlib import suppress

_HURRIED = -15
"""Niceness. LVM takes -18 while devices are suspended. What udevd does about each of ours, nobody waits for."""


def hurry() -> None:
    """Let this thread, and what it starts, go before others: somebody waits for it. Without the right to, nothing."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _HURRIED)


def take_turns() -> None:
    """Let this thread, and what it starts, be like all others again."""
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
