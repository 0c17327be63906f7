"""The host's side of a command that runs: its process group, its output as it comes, signals that end it."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from vmlib.request import Request, VmError

COMMAND_NOT_FOUND = 127

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_AGAIN_MS = 20
_GOODBYE = 5.0
_LOG_LINES = 15
_LINES_BEFORE = 3
_PANIC = re.compile(r"Kernel panic|BUG:|Oops:")


class Interrupted(BaseException):
    """A signal asked us to end; whoever holds a guest or a folder lets go of it on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class TimeLimit(Exception):
    """The command did not end in time."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__(f"the command did not end within {seconds:g} s")


class _EndingSignals:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted, once, but not while a process is being born."""

    def __init__(self) -> None:
        self._held = False
        self._pending: int | None = None

    def obey(self) -> None:
        """From now on a signal ends us."""
        for ending in _ENDING_SIGNALS:
            signal.signal(ending, self._arrived)

    def hold(self) -> None:
        """Put off what arrives."""
        self._held = True

    def release(self) -> None:
        """Raise what was put off."""
        self._held = False
        if self._pending is not None:
            self._raise(self._pending)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._pending = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        for ending in _ENDING_SIGNALS:
            signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not stop the cleaning up
        raise Interrupted(number)


ending_signals = _EndingSignals()


@dataclass(frozen=True, slots=True)
class Channel:
    """A folder that host and guest both see: the job and its pipes go in, output and exit status come out.

    The pipes are made here because a FIFO on a shared folder is a pipe of the kernel that opens it: in the
    guest the command writes into a real pipe, and a reader beside it appends to the files that we follow.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, job: str) -> "Channel":
        """Lay out the folder for one job, a piece of shell text."""
        folder.mkdir()
        (folder / "job").write_text(job, encoding="utf-8", errors="surrogateescape")
        for stream in ("stdout", "stderr"):
            os.mkfifo(folder / f"{stream}.pipe")
            (folder / stream).touch()
        if _same_file(1, 2):
            (folder / "joined").touch()  # one pipe for both keeps the order between them
        return cls(folder)

    def exit_status(self) -> int | None:
        """What the command left, None where the guest died before it ended."""
        try:
            return int((self.folder / "status").read_text())
        except (FileNotFoundError, ValueError):
            return None


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


class _Follower:
    """Copies what is appended to a file to a descriptor."""

    def __init__(self, source: Path, sink: int) -> None:
        self._source = source.open("rb", buffering=0)
        self._sink = sink

    def copy(self) -> None:
        while data := self._source.read(1 << 16):
            while data:
                data = data[os.write(self._sink, data) :]

    def close(self) -> None:
        self._source.close()


def run_guest(argv: Sequence[str], environment: Mapping[str, str], channel: Channel, request: Request) -> int:
    """Run a guest to its end while its output streams through us; the command's exit status."""
    log = request.kernel_log or channel.folder.with_name("kernel.log")
    deadline = _deadline(request)
    with ExitStack() as stack:
        followers = [_Follower(channel.folder / "stdout", 1), _Follower(channel.folder / "stderr", 2)]
        for follower in followers:
            stack.enter_context(closing(follower))
        output = stack.enter_context(log.open("wb"))
        process = stack.enter_context(_process_group(argv, environment, output))
        while not _ended(process, _LOOK_AGAIN_MS):
            _copy_all(followers)
            if time.monotonic() > deadline:
                raise TimeLimit(request.time_limit)
        _copy_all(followers)
        status = channel.exit_status()
        if process.wait() != 0 or status is None:
            raise VmError(f"the guest died (status {process.returncode}); its last words:\n{last_words(log)}")
        return status


def run_here(request: Request, environment: Mapping[str, str]) -> int:
    """Run the command on this machine; its exit status. A signal to us goes to it first: it may clean up."""
    deadline = _deadline(request)
    try:
        with _process_group(request.command, environment, None, goodbye=_GOODBYE) as process:
            while not _ended(process, 1000):
                if time.monotonic() > deadline:
                    raise TimeLimit(request.time_limit)
            status = process.wait()
    except (FileNotFoundError, PermissionError) as failure:
        warn(f"{request.command[0]}: {failure.strerror}")
        return COMMAND_NOT_FOUND
    return status if status >= 0 else 128 - status


def _deadline(request: Request) -> float:
    return float("inf") if request.time_limit is None else time.monotonic() + request.time_limit


@contextmanager
def _process_group(
    argv: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None, *, goodbye: float = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a process group of its own; at the end nothing of that group is left.

    A signal that interrupts us is passed on first, if there are seconds for a goodbye: from the moment that the
    program exists, since it may have been put off until then.
    """
    ending_signals.hold()
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, process_group=0
        )
    except BaseException:
        ending_signals.release()
        raise
    try:
        ending_signals.release()
        yield process
    except Interrupted as interrupted:
        if goodbye:
            os.killpg(process.pid, interrupted.number)
            _ended(process, goodbye * 1000)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for_group(process.pid)


def _wait_for_group(group: int) -> None:
    """The companions of a killed process die a moment later, and hold the locks on disk images until then."""
    give_up = time.monotonic() + _GOODBYE
    while _group_lives(group) and time.monotonic() < give_up:
        time.sleep(0.01)


def _group_lives(group: int) -> bool:
    """Whether a process of the group still runs; the zombies among them wait for their parent only."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


def _ended(process: subprocess.Popen[bytes], milliseconds: float) -> bool:
    """Whether the process has ended, or does so within this time."""
    descriptor = os.pidfd_open(process.pid)
    try:
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        return bool(ready.poll(milliseconds))
    finally:
        os.close(descriptor)


def _copy_all(followers: Sequence[_Follower]) -> None:
    for follower in followers:
        follower.copy()


def last_words(log: Path) -> str:
    """The lines of a kernel log that tell how it ended, indented: around the panic, or just the last."""
    lines = log.read_text(errors="replace").replace("\r", "").splitlines()
    panics = [number for number, line in enumerate(lines) if _PANIC.search(line)]
    start = max(panics[0] - _LINES_BEFORE, 0) if panics else -_LOG_LINES
    shown = lines[start:][:_LOG_LINES]
    return "\n".join(f"    {line}" for line in shown)


def warn(message: str) -> None:
    """A word to the person at the terminal."""
    print(f"vm: {message}", file=sys.stderr)
