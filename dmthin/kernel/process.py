"""The one module that runs external programs, by `sh`: no shell, C locale, fixed PATH, null stdin, a time limit.

Programs are for rare work (mkfs, resize2fs, thin_check, the administrator's dmsetup), and never on the path that every
container takes: `sh` forks the whole interpreter.
"""

import ctypes
import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmthin.errors import TimeLimit, ToolFailed, Unavailable
from dmthin.kernel import priority

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "dmsetup": "dmsetup",
    "thin_check": "thin-provisioning-tools",
    "thin_dump": "thin-provisioning-tools",
    "thin_ls": "thin-provisioning-tools",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "blkid": "util-linux",
    "containerd": "containerd",
}
"""Debian's package for each program that dmthin runs, for the error when the program is missing."""

_LONGEST_WAIT_SECONDS = 0.2
"""How long this waits without looking for signals."""

_KILL_SECONDS = 10.0
"""How long a program that was killed is waited for: if it writes to a full pool, it ends when the write does."""

_WORKER_BUFFER = 1 << 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_KEPT_VARIABLES = ("DM_DISABLE_UDEV", "LVM_SUPPRESS_FD_WARNINGS")


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of a program. `stdout` and `stderr` are text, undecodable bytes replaced."""

    exit_code: int
    stdout: str
    stderr: str


def find(program: str) -> str | None:
    """Return the path of `program`, looked up on the fixed search path unless it is a path; None if it is missing."""
    if "/" in program:
        return program if os.access(program, os.X_OK) else None
    for folder in SEARCH_PATH.split(":"):
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    return None


def run(
    program: str,
    *arguments: str,
    stdin: str | None = None,
    timeout: float = 60,
    ok: Sequence[int] = (0,),
    to_end: bool = False,
) -> Completed:
    """Run `program` to its end, at most `timeout` seconds. The exit statuses in `ok` are no failures.

    The kernel kills the program when this process dies, so that no program is left that holds a device. With `to_end` a
    program that was killed is waited for until it has ended, however long that takes. Raise
    Unavailable (no such program), ToolFailed (with the program's own words), TimeLimit.
    """
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise Unavailable(f"the program {program} is missing", hint=f"install it: apt-get install {package}")
    line = shlex.join([program, *arguments])
    logger.debug("run: %s", line)
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": "/"}
    environment.update({name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ})

    def start() -> Any:
        # Loading it takes 80 ms, and most commands run no program. In the program's thread, since a signal's handler
        # that raised within the import would leave half a module, or be ignored in a callback of the import.
        import sh

        return sh.Command(path)(
            *arguments,
            _in=stdin or "",
            _env=environment,
            _cwd="/",
            _ok_code=list(ok),
            _tty_out=False,
            _bg=True,
            _bg_exc=False,
            _decode_errors="replace",
            _preexec_fn=_before_exec,
        )

    try:
        done = _Program(start).run(timeout, None if to_end else _KILL_SECONDS)
    except TimeoutError:
        raise TimeLimit(f"{line} did not end within {timeout:g} s") from None
    except Exception as failure:
        import sh  # loaded by now

        if not isinstance(failure, sh.ErrorReturnCode):
            raise
        words = " ".join((failure.stderr or failure.stdout).decode(errors="replace").split())
        raise ToolFailed(f"{line} failed ({failure.exit_code}): {words or 'it gave no reason'}") from None
    return Completed(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


async def start_worker(
    argv: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int], *, feeds: bool, reads: bool
) -> "asyncio.subprocess.Process":
    """Start a worker process for an event loop; it inherits these descriptors under their numbers. Raise OSError.

    With `feeds` its standard input is a pipe to write to, with `reads` its standard output one to read from. Its
    standard error is that of this process. Not by `sh`, whose fork of the whole interpreter is too slow for each layer.
    """
    import asyncio

    logger.debug("run: %s", shlex.join(argv))
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if feeds else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
        env=environment,
        pass_fds=descriptors,
        cwd="/",
        limit=_WORKER_BUFFER,
    )


class _Program:
    """A program that a thread of its own starts and waits for.

    The handler of a signal may raise in the main thread, between any two instructions. Inside of `sh` that would leave
    a program that is never killed, and threads that never end. And `sh` checks its own time limit ten times a second
    only, so that every program would take a tenth of a second.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._begun = threading.Lock()
        self._running: Future[Any] = Future()
        self._ended: Future[Any] = Future()

    def run(self, seconds: float, kill_seconds: float | None) -> Any:
        """Run it and return its result. Raise what `sh` raises, TimeoutError, or what a signal's handler raises.

        Whatever ends the wait, the program is killed first, and waited for `kill_seconds`; None is without a limit.
        """
        try:
            threading.Thread(target=self._work, name="program", daemon=True).start()
            self._await_end(time.monotonic() + seconds)
            return self._ended.result()
        except BaseException:
            # If the thread has not begun, this takes the lock, without which it starts nothing.
            if not self._begun.acquire(blocking=False) and not self._ended.done():
                with suppress(Exception):
                    self._running.result().kill()
                wait([self._ended], kill_seconds)
            raise

    def _await_end(self, until: float) -> None:
        # A signal that comes just before a wait begins does not end that wait; its handler runs before the next.
        while not self._ended.done():
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            wait([self._ended], min(left, _LONGEST_WAIT_SECONDS))

    def _work(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            running = self._start()
            self._running.set_result(running)
            self._ended.set_result(running.wait())
        except BaseException as error:
            if not self._running.done():
                self._running.set_exception(error)
            self._ended.set_exception(error)


def _before_exec() -> None:
    priority.reset_priority()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
