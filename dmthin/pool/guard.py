"""A process that suspends a device and resumes it when we are done, or dead.

A suspend waits for the device's I/O, which on a pool that has just filled up waits for an administrator; and a manager
that is killed between suspend and resume would leave the device frozen for ever. So a small process of its own does
both: it can be killed while it waits (the kernel then gives the suspend up), and it notices our end by a closed pipe.
"""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from dmthin import steps
from dmthin.errors import DmthinError, KernelError, KernelInvalid, NotFound, TimeLimit
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.kernel.dmioctl import IoctlDeviceMapper

_START_SECONDS = 5.0
_STARTS = 3
_BEGUN = b"."
_SUSPEND_SECONDS = 10.0
_END_SECONDS = 2.0
_INTERRUPTED_EVERY_SECONDS = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Guard:
    """Entering suspends the device `name` (file system frozen, I/O flushed), leaving resumes it.

    The guard keeps the descriptor `keep`, if there is one, open until it has resumed the device: a lock on it is free
    only when the device is. Raises TimeLimit if the device does not come to rest within 10 seconds; it then goes on as
    before.
    """

    def __init__(self, name: str, keep: int = -1) -> None:
        self._name = name
        self._keep = keep
        self._pid = 0
        self._hold = -1

    def __enter__(self) -> Self:
        ready = self._start()
        try:
            self._await_suspend(ready)
        except BaseException:
            if self._finish(interrupt=True):
                self._resume()
            raise
        finally:
            os.close(ready)
        return self

    def __exit__(self, *_: object) -> None:
        if self._finish():
            self._resume()

    def _start(self) -> int:
        """Start the guard; the pipe on which it tells of itself.

        A fork of a process with threads may hang before it comes to our code, in a lock that another thread had. It has
        not suspended anything then, so it is killed, and another one started. Raises TimeLimit.
        """
        for _ in range(_STARTS):
            ready = self._fork()
            try:
                if _is_readable(ready, _START_SECONDS) and os.read(ready, len(_BEGUN)) == _BEGUN:
                    return ready
            except BaseException:
                self._kill(ready)
                raise
            self._kill(ready)
        raise TimeLimit(f"the guard of the device {self._name} does not start", hint="try again")

    def _kill(self, ready: int) -> None:
        """End a guard that has not begun; if it has by now, undo what it did."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        if os.read(ready, len(_BEGUN)):
            self._resume()
        os.close(ready)
        os.close(self._hold)

    def _fork(self) -> int:
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        hold_read, self._hold = os.pipe2(os.O_CLOEXEC)
        # A signal between the fork and the guard's own code would run our handlers in the guard.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._pid = os.fork()
            if not self._pid:
                _guard(self._name, ready_write, hold_read, self._keep)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(ready_write)
        os.close(hold_read)
        return ready_read

    def _await_suspend(self, ready: int) -> None:
        if not _is_readable(ready, _SUSPEND_SECONDS):
            raise TimeLimit(
                f"the device {self._name} did not come to rest within {_SUSPEND_SECONDS:g} s",
                hint="see: dmthin pool status",
            )
        answer = os.read(ready, 4096).decode()
        if answer != "suspended":
            raise KernelError(answer or f"the guard of {self._name} died")

    def _finish(self, *, interrupt: bool = False) -> int:
        """Let the guard go, and wait for it; its exit status, which is not 0 if it did not resume the device.

        `interrupt` ends a suspend that waits. One that takes no signal, because the file system's freeze waits for a
        full pool, is left behind with its guard, which resumes the device as soon as the kernel lets it.
        """
        os.close(self._hold)
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if interrupt:
                os.kill(self._pid, signal.SIGTERM)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return status
            time.sleep(_INTERRUPTED_EVERY_SECONDS if interrupt else 0.0005)
        return 0

    def _resume(self) -> None:
        """Should the guard have been killed after its suspend."""
        with IoctlDeviceMapper() as dm, suppress(NotFound):
            resume(dm, self._name)


def resume(dm: DeviceMapper, name: str) -> DeviceInfo:
    """Resume a suspended device, which a guard whose manager died may do at the same moment.

    The kernel then refuses the later one (dm_resume: EINVAL), which has what it wanted.
    """
    try:
        return dm.resume(name)
    except KernelInvalid:
        if (info := dm.info(name)).suspended:
            raise
        return info


def _is_readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or the other side is gone, within so many seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _interrupted(*_: object) -> None:
    """A signal ends a suspend that waits, and not the guard, which alone can undo one that came about all the same."""


def _guard(name: str, ready: int, hold: int, keep: int) -> NoReturn:
    """The process: own session, so that a Ctrl-C meant for the manager does not reach it.

    It keeps none of the manager's other descriptors: the locks among them would outlive their holder, and the pipes to
    other guards would hold those.
    """
    status = 1
    try:
        for entry in list(Path("/proc/self/fd").iterdir()):
            if int(entry.name) not in (0, 1, 2, ready, hold, keep):
                with suppress(OSError):
                    os.close(int(entry.name))
        steps.arm(0)
        os.setsid()
        for number in _SIGNALS:
            signal.signal(number, _interrupted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with IoctlDeviceMapper() as dm:
            os.write(ready, _BEGUN)
            try:
                dm.suspend(name)
            except DmthinError as error:
                status = 0
                os.write(ready, str(error).encode()[:4096])
                os._exit(status)
            try:
                os.write(ready, b"suspended")
                os.read(hold, 1)
            finally:
                dm.resume(name)
                status = 0
    finally:
        os._exit(status)
