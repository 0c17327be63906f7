"""The steps of each change: where they are traced, and where a test can kill the process.

Every durable step (an ioctl that changes something, a ledger commit, a mount, a file made or removed) runs inside
`step(...)`. A trace logs each of them, with its duration, at the level DEBUG.

With DMTHIN_FAILPOINT=N in the environment, or after `arm(N)`, the process kills itself with SIGKILL at the Nth edge
that it passes: each step has one edge before it and one after it. So a test can prove that recovery works from each.

While nothing is traced and nothing armed, a step costs one comparison.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

logger = logging.getLogger(__name__)

STEPS = 1
"""Verbosity: steps, and waits for locks."""

REQUESTS = 2
"""Verbosity: each ioctl and each lock that is taken, too."""

verbosity = 0
_remaining = int(os.environ.get("DMTHIN_FAILPOINT", "0"))
_listener: Callable[[str], None] | None = None
_is_watched = bool(_remaining)
_UNWATCHED = nullcontext()
_held = threading.local()


def arm(edges: int, listener: Callable[[str], None] | None = None) -> None:
    """Kill this process at the given edge from now on, counted from 1, or never for 0.

    `listener` is called with each edge that is passed: `before NAME` or `after NAME`.
    """
    global _remaining, _listener
    _remaining, _listener = edges, listener
    _note_watched()


def trace(level: int) -> None:
    """Log from now on what belongs to a verbosity: 0 (nothing), STEPS or REQUESTS."""
    global verbosity
    verbosity = level
    _note_watched()


def step(*words: object) -> AbstractContextManager[None]:
    """Mark the block as one durable step; the words are its name."""
    return _Step(words, has_edges=True) if _is_watched else _UNWATCHED


def traced(*words: object) -> AbstractContextManager[None]:
    """Trace the block like a step, where there is nothing durable for a test to cut."""
    return _Step(words, has_edges=False) if _is_watched else _UNWATCHED


def report(text: str) -> None:
    """Log one line of the trace. The caller has compared `verbosity`."""
    lines: list[str] | None = getattr(_held, "lines", None)
    if lines is None:
        logger.debug("%s", text)
    else:
        lines.append(text)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep this thread's lines of the trace until the end of the block.

    For while a device is suspended: the log may lie on its file system, and writing a line would wait for the resume
    that this thread is to bring about.
    """
    if not verbosity or getattr(_held, "lines", None) is not None:
        yield
        return
    lines: list[str] = []
    _held.lines = lines
    try:
        yield
    finally:
        _held.lines = None
        for line in lines:
            logger.debug("%s", line)


class _Step:
    """A step that is traced, or at whose edges something happens."""

    __slots__ = ("_begin", "_has_edges", "_words")

    def __init__(self, words: tuple[object, ...], *, has_edges: bool) -> None:
        self._words = words
        self._has_edges = has_edges

    def __enter__(self) -> None:
        if self._has_edges:
            _pass_edge("before", self._words)
        self._begin = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if verbosity:
            failed = f" failed: {str(error) or kind.__name__}" if kind else ""
            report(f"step: {_name(self._words)}{failed} ({milliseconds_since(self._begin)})")
        if self._has_edges and kind is None:
            _pass_edge("after", self._words)


def milliseconds_since(begin: float) -> str:
    """Return the time since a `time.perf_counter()`, as the trace writes it."""
    return f"{(time.perf_counter() - begin) * 1000:.2f} ms"


def _note_watched() -> None:
    global _is_watched
    _is_watched = bool(verbosity or _remaining or _listener)


def _name(words: tuple[object, ...]) -> str:
    return " ".join(map(str, words))


def _pass_edge(side: str, words: tuple[object, ...]) -> None:
    global _remaining
    if _listener is not None:
        _listener(f"{side} {_name(words)}")
    if _remaining:
        _remaining -= 1
        if not _remaining:
            os.kill(os.getpid(), signal.SIGKILL)
