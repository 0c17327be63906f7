"""Child processes that run a function of the test: started, waited for, repeated in the background, killed.

Each is a fork of the test's own process. It ends with status 0 when its function returns, and with 1 and a traceback
when that raises; the function may choose another status by `os._exit`.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin import steps
from dmthin.kernel import process
from dmthin.store.store import Store
from enginelib.waiting import PATIENCE

NOBODY = 65534
"""The uid and gid of an unprivileged user."""

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def program(name: str, *arguments: str, ok: Sequence[int] = (0,)) -> process.Completed:
    """Run a program to its end, however slow the machine is. Raises as `process.run` does."""
    return process.run(name, *arguments, timeout=PATIENCE, ok=ok)


def start(action: Callable[[], object]) -> int:
    """Start a child that runs `action` once, and return its pid. It must be waited for: see `outcome`."""
    pid = os.fork()
    if not pid:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def outcome(pid: int) -> int:
    """Wait for a child and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(action: Callable[[], object]) -> int:
    """Run `action` in a child to its end, and return the exit status, negative for a signal."""
    return outcome(start(action))


def unshare_mounts() -> None:
    """Give this process, a child, a mount namespace of its own, of which no other sees a change. Raise OSError."""
    failed = _libc.unshare(_CLONE_NEWNS) or _libc.mount(
        b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None
    )
    if failed:
        raise OSError(ctypes.get_errno(), "unshare the mounts")


@contextmanager
def child(action: Callable[[], object]) -> Iterator[int]:
    """Run `action` in a child while the block runs, and yield its pid; kill it at the end if it still runs."""
    pid = start(action)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def background(action: Callable[[], object], last: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Repeat `action` in a child while the block runs, then do `last` there; it must end well.

    It has done its first round when the block begins. Yields its pid.
    """
    begun_read, begun_write = os.pipe()
    stop_read, stop_write = os.pipe()

    def repeat() -> None:
        os.close(stop_write)
        os.set_blocking(stop_read, False)
        action()
        os.write(begun_write, b"x")
        while not _closed(stop_read):
            action()
        last()

    pid = start(repeat)
    os.close(stop_read)
    os.close(begun_write)
    try:
        assert os.read(begun_read, 1) == b"x", "the process in the background failed in its first round"
        yield pid
    finally:
        os.close(begun_read)
        os.close(stop_write)
        status = outcome(pid)
    assert status == 0, "the process in the background failed"


def _closed(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def in_processes(root: Path, *actions: Callable[[Store], object]) -> None:
    """Run each action in a child with a Store of its own, all at the same time; none may fail."""

    def opening(action: Callable[[Store], object]) -> Callable[[], None]:
        def run() -> None:
            with Store(root) as store:
                action(store)

        return run

    pids = [start(opening(action)) for action in actions]
    assert [outcome(pid) for pid in pids] == [0] * len(pids)


def run_until_killed(edges: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that dies at the given edge; return False if it came to its end before that."""

    def run_armed() -> None:
        steps.arm(edges)
        action()
        steps.arm(0)

    status = run(run_armed)
    assert status in (0, -signal.SIGKILL), "the verb failed by itself"
    return status != 0


def killed_at(edge: str, root: Path, action: Callable[[Store], object]) -> bool:
    """Run a verb in a child that dies at the first edge whose name begins with `edge`; return whether it did."""

    def run_armed() -> None:
        steps.arm(0, lambda name: os.kill(os.getpid(), signal.SIGKILL) if name.startswith(edge) else None)
        with Store(root) as store:
            action(store)

    return run(run_armed) == -signal.SIGKILL


def error_output(action: Callable[[], object]) -> tuple[int, str]:
    """Run `action` in a child to its end; return its exit status and what it wrote to standard error."""
    reading, writing = os.pipe()

    def redirected() -> None:
        os.close(reading)
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        action()

    pid = start(redirected)
    os.close(writing)
    with open(reading) as stream:
        text = stream.read()
    return outcome(pid), text
