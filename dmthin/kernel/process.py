"""The one door to external programs, on top of `sh`: no shell, C locale, fixed PATH, null stdin, a time limit.

Programs belong at the edges (mkfs, resize2fs, thin_check, the administrator's dmsetup), never on the path that
every container takes: `sh` forks the whole interpreter.
"""

import ctypes
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmthin.errors import TimeLimit, ToolFailed, Unavailable

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
}
"""Debian's package for each program that dmthin calls, named when the program is missing."""

_WORKER_BUFFER = 1 << 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_KEPT_VARIABLES = ("DM_DISABLE_UDEV", "LVM_SUPPRESS_FD_WARNINGS")


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program said. `stdout` and `stderr` are text, undecodable bytes replaced."""

    exit_code: int
    stdout: str
    stderr: str


def find(program: str) -> str | None:
    """The absolute path of `program` on the fixed search path, None where it is missing."""
    for folder in SEARCH_PATH.split(":"):
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    return None


def run(
    program: str, *arguments: str, stdin: str | None = None, timeout: float = 60, ok: Sequence[int] = (0,)
) -> Completed:
    """Run `program` to its end, at most `timeout` seconds; the exit statuses in `ok` are answers, not failures.

    The program is killed when this thread dies, so that nobody is left holding a device.
    Raises Unavailable (no such program), ToolFailed (with the program's own words), TimeLimit.
    """
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise Unavailable(f"the program {program} is missing", hint=f"install it: apt-get install {package}")
    import sh  # costs 80 ms, which a command that runs no program need not pay

    line = shlex.join([program, *arguments])
    logger.debug("run: %s", line)
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": "/"}
    environment.update({name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ})
    try:
        running: Any = sh.Command(path)(
            *arguments,
            _in=stdin or "",
            _env=environment,
            _cwd="/",
            _timeout=timeout,
            _timeout_signal=signal.SIGKILL,
            _ok_code=list(ok),
            _tty_out=False,
            _bg=True,
            _bg_exc=False,
            _decode_errors="replace",
            _preexec_fn=_die_with_parent,
        )
        with _killed_on_interruption(running, sh.ErrorReturnCode, sh.TimeoutException):
            done = running.wait()
    except sh.TimeoutException:
        raise TimeLimit(f"{line} did not end within {timeout:g} s") from None
    except sh.ErrorReturnCode as failure:
        words = " ".join((failure.stderr or failure.stdout).decode(errors="replace").split())
        raise ToolFailed(f"{line} failed ({failure.exit_code}): {words or 'it gave no reason'}") from None
    return Completed(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


async def start_worker(
    argv: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int], *, feeds: bool, reads: bool
) -> "asyncio.subprocess.Process":
    """Start a process of our own that works beside an event loop; it inherits these descriptors under their numbers.

    With `feeds` its standard input is a pipe to write to, with `reads` its standard output one to read from. Its words
    go to our standard error. Not `sh`, whose fork of the whole interpreter costs too much for each layer.
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


@contextmanager
def _killed_on_interruption(running: Any, *own_ends: type[Exception]) -> Iterator[None]:
    """A program does not outlive a signal that ends our wait for it, or it would still hold a device."""
    try:
        yield
    except own_ends:
        raise
    except BaseException:
        with suppress(Exception):
            running.kill()
            running.wait()
        raise


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
