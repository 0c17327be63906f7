"""How far long work is: one line on a terminal, rewritten, from the third second on, and erased at the end."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from dmthin.cli.output import Output
from dmthin.units import format_size

if TYPE_CHECKING:
    from dmthin.layers.unpack import Progress

_QUIET_SECONDS = 2.0
_STEP_SECONDS = 0.2


class ProgressLine:
    """The line itself. `clock` counts seconds; `show` may be called as often as one likes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._begin = clock()
        self._next = self._begin + _QUIET_SECONDS
        self._width = 0

    @property
    def seconds(self) -> float:
        """The time since the line was made."""
        return self._clock() - self._begin

    def show(self, text: Callable[[], str]) -> None:
        """Rewrite the line, if it is time to."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _STEP_SECONDS
        columns = shutil.get_terminal_size().columns - 1
        line = text()[:columns]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def clear(self) -> None:
        """Erase the line; it comes back with the next `show`."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def line_on_terminal(output: Output) -> Iterator[ProgressLine | None]:
    """A line while the block runs, None where no person watches; erased at the end, and before any other word."""
    stream = output.terminal()
    if stream is None:
        yield None
        return
    line = ProgressLine(stream)
    output.live_line = line
    try:
        yield line
    finally:
        output.live_line = None
        line.clear()


def unpacking(progress: "Progress", seconds: float) -> str:
    """How far an import is: `12345 entries, 1.20G, 43%, 85.0M/s`."""
    parts = [f"{progress.entries} entries", format_size(progress.bytes)]
    if progress.total:
        parts.append(f"{min(100, 100 * progress.read // progress.total)}%")
    parts.append(f"{format_size(int(progress.read / seconds) if seconds > 0 else 0)}/s")
    return ", ".join(parts)
