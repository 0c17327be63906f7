"""Named places where a test can kill this process, to prove that recovery works from each of them.

Every durable step (an ioctl that changes something, a ledger commit, a mount, a file made or removed) runs
inside `step(name)`. With DMTHIN_FAILPOINT=N in the environment, or after `arm(N)`, the process kills itself with
SIGKILL at the Nth edge it passes: each step has one edge before it and one after it. Unarmed, a step costs
one comparison.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_remaining = int(os.environ.get("DMTHIN_FAILPOINT", "0"))
_listener: Callable[[str], None] | None = None


def arm(edges: int, listener: Callable[[str], None] | None = None) -> None:
    """Die at the given edge from now on (0: never); `listener` hears the name of each edge passed."""
    global _remaining, _listener
    _remaining, _listener = edges, listener


@contextmanager
def step(name: str) -> Iterator[None]:
    """Mark the block as one durable step."""
    _edge("before", name)
    yield
    _edge("after", name)


def _edge(side: str, name: str) -> None:
    global _remaining
    if _listener is not None:
        _listener(f"{side} {name}")
    if _remaining:
        _remaining -= 1
        if not _remaining:
            os.kill(os.getpid(), signal.SIGKILL)
