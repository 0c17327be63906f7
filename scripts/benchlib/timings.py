"""How long things took, by name, and what to say of many runs."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Timings:
    """Seconds of each operation's runs, by its name, in the order of the first run."""

    runs: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, action: Callable[[], T]) -> T:
        """Run an action and note how long it took; what it returned."""
        begin = time.perf_counter()
        result = action()
        self.runs.setdefault(name, []).append(time.perf_counter() - begin)
        return result

    def add(self, name: str, *parts: str) -> None:
        """Note the sum of several operations' last runs as one of its own."""
        self.runs.setdefault(name, []).append(sum(self.runs[part][-1] for part in parts))

    def median(self, name: str) -> float:
        """Half of the runs took less."""
        return statistics.median(self.runs[name])

    def high(self, name: str) -> float:
        """Nine of ten runs took less."""
        runs = sorted(self.runs[name])
        return runs[min(len(runs) - 1, len(runs) * 9 // 10)]
