"""Progress of long operations: one line on a terminal, rewritten in place, shown after two seconds."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from dmthin.cli.output import Output
from dmthin.units import format_size

if TYPE_CHECKING:
    from dmthin.layers.unpack import Progress

_DELAY_SECONDS = 2.0
_INTERVAL_SECONDS = 0.2


class ProgressLine:
    """A progress line. `clock` returns seconds. `show` limits its own rate."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._begin = clock()
        self._next = self._begin + _DELAY_SECONDS
        self._width = 0

    @property
    def seconds(self) -> float:
        """The age of the line."""
        return self._clock() - self._begin

    def show(self, text: Callable[[], str]) -> None:
        """Rewrite the line, unless it was rewritten just before."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _INTERVAL_SECONDS
        columns = shutil.get_terminal_size().columns - 1
        line = text()[:columns]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def clear(self) -> None:
        """Erase the line until the next `show`."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def line_on_terminal(output: Output) -> Iterator[ProgressLine | None]:
    """Yield a progress line, None without a terminal. It is erased at the end, and before other output."""
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
    """Return the progress of an import after `seconds`: `12345 entries, 1.20G, 43%, 85.0M/s`."""
    parts = [f"{progress.entries} entries", format_size(progress.bytes)]
    if progress.total:
        parts.append(f"{min(100, 100 * progress.read // progress.total)}%")
    parts.append(f"{format_size(int(progress.read / seconds) if seconds > 0 else 0)}/s")
    return ", ".join(parts)
