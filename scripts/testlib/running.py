"""Processes of pytest side by side, on the host or in guests, that take test modules from one queue."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from testlib.selection import CHECKOUT
from vmlib.request import OUT_IN_GUEST

LEFT_FILES = ("matrix.json", "kernel.xml", "systemd.json")
NO_TESTS = 5
"""pytest's exit status when it collected nothing: a selection by -k need not match in every place."""


class Interrupted(BaseException):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Step:
    """One process of pytest: `words` say what it runs, `guest` are options of scripts/vm, None for the host.

    Steps of one `queue` share their modules; with `stays` they keep to a folder while it has any.
    """

    queue: str
    words: Sequence[str]
    guest: Sequence[str] | None = None
    stays: bool = False


@dataclass(slots=True)
class Lane:
    """Steps that run one after the other, side by side with other lanes."""

    name: str
    steps: Sequence[Step]


@dataclass(slots=True)
class Outcome:
    """What lanes came to: those that failed, and whether any test was selected; seconds by module.

    `left` is what steps have left in files, by the step's queue and the file's name.
    """

    failed: list[str] = field(default_factory=list)
    selected: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    left: dict[tuple[str, str], str] = field(default_factory=dict)


def venv() -> Path:
    """The virtual environment of the tests."""
    return Path(os.environ.get("DMTHIN_VENV") or CHECKOUT / ".venv").absolute()


def say(text: str) -> None:
    """Head what follows."""
    print(f"\n=== {text}", flush=True)


@contextmanager
def ending_signals_raise() -> Iterator[None]:
    """Raise Interrupted at SIGINT, SIGTERM and SIGHUP while the block runs."""

    def raise_interrupted(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_interrupted)
    yield


def run_lanes(lanes: Sequence[Lane], arguments: Sequence[str], environment: Mapping[str, str]) -> Outcome:
    """Run lanes side by side: the first speaks as it goes, each other one when it has ended."""
    with tempfile.TemporaryDirectory(prefix="dmthin-test-") as name:
        folder = Path(name)
        logs = [None, *(folder / f"{number}.log" for number in range(1, len(lanes)))]
        running = [_Lane(*each, folder, arguments, environment) for each in zip(lanes, logs, strict=True)]
        try:
            while under_way := [lane for lane in running if not lane.is_over()]:
                _wait_for_a_child()
                for lane in under_way:
                    lane.advance()
        finally:
            for lane in running:
                lane.end()
        return _outcome(running, folder)


class _Lane:
    """A lane as it runs; its output goes to `log`, if there is one."""

    def __init__(
        self, lane: Lane, log: Path | None, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.lane = lane
        self.statuses: list[int] = []
        self._folder = folder
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._left = list(lane.steps)
        self._process: subprocess.Popen[bytes] | None = self._start(self._left.pop(0))

    def is_over(self) -> bool:
        """Whether all steps have ended."""
        return self._process is None

    def advance(self) -> None:
        """Start the next step if the one before has ended."""
        if self._process is None or (status := self._process.poll()) is None:
            return
        self.statuses.append(status)
        self._process = self._start(self._left.pop(0)) if self._left else None
        if self.is_over():
            self._speak()

    def end(self) -> None:
        """End what still runs: scripts/vm and pytest clean up by themselves."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._speak()

    def _start(self, step: Step) -> "subprocess.Popen[bytes]":
        shared = self._folder / step.queue
        (shared / "queue").mkdir(parents=True, exist_ok=True)
        seen = shared if step.guest is None else OUT_IN_GUEST
        queue = {"DMTHIN_TEST_QUEUE": str(seen / "queue"), "DMTHIN_TEST_STAYS": "1" if step.stays else ""}
        queue["DMTHIN_TEST_OUT"] = str(seen)
        if step.guest is None:
            line = [str(venv() / "bin/python"), "-m", "pytest"]
        else:
            guest = [str(CHECKOUT / "scripts/vm"), "--out", str(shared), *step.guest]
            line = [*guest, "--", "python", "-m", "pytest", "-p", "no:cacheprovider"]
        line += [*step.words, *self._arguments]
        environment = {**os.environ, **self._environment, **queue}
        with ExitStack() as stack:
            output = stack.enter_context(self._log.open("ab")) if self._log else None
            return subprocess.Popen(
                line, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _speak(self) -> None:
        """Print the output of the lane, unless it was printed as it came."""
        if self._log is not None:
            say(self.lane.name)
            with self._log.open("rb") as log:
                shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()


def _wait_for_a_child() -> None:
    """Return once a child has ended; whose end was not asked for yet stays a zombie until it is."""
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


def _outcome(lanes: Sequence[_Lane], folder: Path) -> Outcome:
    outcome = Outcome()
    for lane in lanes:
        statuses = [status for status in lane.statuses if status != NO_TESTS]
        outcome.selected = outcome.selected or bool(statuses)
        if any(statuses):
            outcome.failed.append(lane.lane.name)
    for file in folder.glob("*/durations-*.json"):
        for module, seconds in json.loads(file.read_text()).items():
            outcome.seconds[module] = outcome.seconds.get(module, 0) + seconds
    for name in LEFT_FILES:
        for file in folder.glob(f"*/{name}"):
            outcome.left[file.parent.name, name] = file.read_text()
    return outcome
