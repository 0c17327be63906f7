"""Scheduling priority: setpriority(2), which on Linux holds for one thread and the processes that it starts."""

import os
from contextlib import suppress

_HIGH = -15
"""Niceness. LVM uses -18 while devices are suspended. udevd, which handles an event of each device, has 0."""


def raise_priority() -> None:
    """Schedule this thread, and what it starts, before others: a client waits for it. Do nothing without the right."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _HIGH)


def reset_priority() -> None:
    """Schedule this thread, and what it starts, like all others again."""
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
