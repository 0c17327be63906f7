"""Trying again what a process that has a device open for a moment stands in the way of.

udev's rules and blkid open each block device that appears or changes, read its first blocks and close it again.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from dmthin.errors import InUse

_Result = TypeVar("_Result")

ATTEMPTS = 5
PAUSE_SECONDS = 0.05


def retry_busy(
    action: Callable[[], _Result], *, attempts: int = ATTEMPTS, is_final: Callable[[], bool] = lambda: False
) -> _Result:
    """Return what `action` returns, after up to `attempts` calls of it, 50 ms apart, of which all but the last fail.

    Only InUse is retried. Raise the last InUse, or the first one after which `is_final` says that waiting is of no use.
    """
    for _ in range(attempts - 1):
        try:
            return action()
        except InUse:
            if is_final():
                raise
        time.sleep(PAUSE_SECONDS)
    return action()
