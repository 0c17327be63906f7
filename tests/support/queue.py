"""Several pytest processes that take test modules from one queue, so that none of them idles.

The queue is a folder that all of them see, be they on the host or in guests: a process takes a module by making a
folder of its name in there, which only one of them can. The longest modules come first, as of the last recorded run,
and those of which nothing is known before them.
"""

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

DURATIONS = Path(__file__).parents[1] / "durations.json"
"""Seconds that each test module took when that was recorded, by its path below the checkout."""


class SharedQueue:
    """A pytest plugin: run the modules of the session that no other process has taken.

    With `stays` it prefers modules of the folder that it is in, and then of a folder that no process has begun: for
    folders whose fixtures are dear.
    """

    def __init__(self, folder: Path, *, stays: bool = False) -> None:
        self._folder = folder
        self._stays = stays
        self._known: dict[str, float] = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._place = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Take the place of pytest's own loop, which goes through `session.items`."""
        if session.testsfailed or session.config.option.collectonly:
            return None
        items: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            items.setdefault(module_of(item.nodeid), []).append(item)
        taken = list(self._run(session, items))
        others = [item for module in items if module not in taken for item in items[module]]
        session.config.hook.pytest_deselected(items=others)
        return True

    def _run(self, session: pytest.Session, items: dict[str, list[pytest.Item]]) -> Iterator[str]:
        """Run module after module; each is taken before the one before it ends, so that pytest knows what it shares."""
        left = dict(items)
        module = self._take(left)
        while module is not None:
            yield module
            mine, following = items[module], None
            for index, item in enumerate(mine):
                if index + 1 == len(mine):
                    following = self._take(left)
                    after = items[following][0] if following else None
                else:
                    after = mine[index + 1]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
            module = following

    def _take(self, left: dict[str, list[pytest.Item]]) -> str | None:
        """Take the best of the modules that are left; None once all are taken."""
        while left:
            begun = {name.rpartition("+")[0] for name in os.listdir(self._folder)} if self._stays else set()

            def rank(module: str, begun: set[str] = begun) -> tuple[int, float]:
                folder = _name(module).rpartition("+")[0]
                preference = 0 if folder == self._place else 1 if folder not in begun else 2
                return (preference if self._stays else 0, -self._known.get(module, float("inf")))

            best = min(left, key=rank)
            del left[best]
            try:
                (self._folder / _name(best)).mkdir()
            except FileExistsError:
                continue
            self._place = _name(best).rpartition("+")[0]
            return best
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up what each module takes."""
        self._seconds[module_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Leave what was measured beside the queue, for `scripts/test --record-durations`."""
        text = json.dumps(self._seconds)
        (self._folder.parent / f"durations-{secrets.token_hex(8)}.json").write_text(text)


def module_of(node: str) -> str:
    """The path of a test's module, below the checkout."""
    return node.partition("::")[0]


def _name(module: str) -> str:
    """A module's name in the queue."""
    return module.replace("/", "+")
