"""A process that suspends a device, and resumes it when its manager is done, or dead.

A suspend waits for the I/O of the device, and on a pool that has just filled up that waits for an administrator. A
manager that is killed between a suspend and the resume would leave the device suspended for good. So a small process of
its own does both: it can be killed while it waits (the kernel then gives the suspend up), and it notices the end of its
manager by a pipe that is closed.
"""

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn, Self

from dmthin import steps
from dmthin.errors import DmthinError, KernelError, KernelInvalid, NotFound, TimeLimit
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.kernel.dmioctl import IoctlDeviceMapper

_START_SECONDS = 5.0
_STARTS = 3
_STARTED = b"."
_SUSPENDED = "suspended"
_SUSPEND_SECONDS = 10.0
_END_SECONDS = 2.0
_INTERRUPT_PAUSE_SECONDS = 0.02
_END_PAUSE_SECONDS = 0.0005
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Guard:
    """Suspends the device `name` when it is entered (file system frozen, I/O flushed), and resumes it when it is left.

    The guard process keeps the descriptor `lock_fd`, if there is one, open until it has resumed the device: a lock on
    that open file is free only when the device is resumed.
    """

    def __init__(self, name: str, lock_fd: int = -1) -> None:
        self._name = name
        self._lock_fd = lock_fd
        self._pid = 0
        self._lifeline = -1
        """Our end of a pipe. The guard waits for the other end to be closed, and then resumes the device."""

        self._trace = ExitStack()

    def __enter__(self) -> Self:
        """Suspend the device.

        Raise TimeLimit if it cannot be suspended within 10 seconds, and goes on as before; KernelError for what else
        the guard has met.
        """
        self._trace.enter_context(steps.held_back())
        try:
            with steps.traced("guard start", self._name):
                status_pipe = self._start()
            try:
                with steps.traced("guard suspend", self._name):
                    self._await_suspend(status_pipe)
            except BaseException:
                if self._finish(interrupt=True):
                    self._resume()
                raise
            finally:
                os.close(status_pipe)
        except BaseException:
            self._trace.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._trace, steps.traced("guard resume", self._name):
            if self._finish():
                self._resume()

    def _start(self) -> int:
        """Start the guard. Return the pipe on which it writes its status. Raise TimeLimit if it does not start.

        Only the forking thread exists in the new process. A lock that another thread of ours held at that moment, in
        malloc or in the interpreter, stays locked there for good, and the guard hangs before it runs any code of ours.
        It has not suspended anything then, so it can be killed and started again.
        """
        for _ in range(_STARTS):
            status_pipe = self._fork()
            try:
                if _is_readable(status_pipe, _START_SECONDS) and os.read(status_pipe, len(_STARTED)) == _STARTED:
                    return status_pipe
            except BaseException:
                self._kill(status_pipe)
                raise
            self._kill(status_pipe)
        raise TimeLimit(f"the guard of the device {self._name} does not start", hint="try again")

    def _kill(self, status_pipe: int) -> None:
        """Kill a guard that has not said that it has started, and undo what it did if it has by now."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        if os.read(status_pipe, len(_STARTED)):
            self._resume()
        os.close(status_pipe)
        os.close(self._lifeline)

    def _fork(self) -> int:
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        lifeline_read, self._lifeline = os.pipe2(os.O_CLOEXEC)
        # A signal between the fork and the guard's own code would run our handlers in the guard: a second process that
        # cleans up after the same change. So signals are blocked until the guard has handlers of its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._pid = os.fork()
            if not self._pid:
                _guard(self._name, status_write, lifeline_read, self._lock_fd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(status_write)
        os.close(lifeline_read)
        return status_read

    def _await_suspend(self, status_pipe: int) -> None:
        if not _is_readable(status_pipe, _SUSPEND_SECONDS):
            raise TimeLimit(
                f"the device {self._name} could not be suspended within {_SUSPEND_SECONDS:g} s",
                hint="see: dmthin pool status",
            )
        answer = os.read(status_pipe, 4096).decode()
        if answer != _SUSPENDED:
            raise KernelError(answer or f"the guard of {self._name} died")

    def _finish(self, *, interrupt: bool = False) -> int:
        """Let the guard resume the device and end. Return its exit status, which is not 0 if it has not resumed it.

        `interrupt` ends a suspend that waits. A suspend that takes no signal, because the freeze of the file system
        waits for a full pool, is left to its guard, which resumes the device as soon as the kernel lets it.
        """
        os.close(self._lifeline)
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if interrupt:
                os.kill(self._pid, signal.SIGTERM)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return status
            time.sleep(_INTERRUPT_PAUSE_SECONDS if interrupt else _END_PAUSE_SECONDS)
        return 0

    def _resume(self) -> None:
        """Resume the device in place of a guard that was killed after it had suspended it."""
        with IoctlDeviceMapper() as dm, suppress(NotFound):
            resume(dm, self._name)


def resume(dm: DeviceMapper, name: str) -> DeviceInfo:
    """Resume a suspended device, which the guard of a manager that died may do at the same moment.

    The kernel then refuses the later resume (dm_resume: EINVAL), and the device is as it should be. Raise what
    `DeviceMapper.resume` raises otherwise.
    """
    try:
        return dm.resume(name)
    except KernelInvalid:
        if (info := dm.info(name)).suspended:
            raise
        return info


def _is_readable(fd: int, seconds: float) -> bool:
    """Return whether there is something to read, or the other end is closed, within so many seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _interrupted(*_: object) -> None:
    """Let a signal interrupt a suspend that waits, but not end the guard.

    Only the guard can undo a suspend that has come about all the same.
    """


def _guard(name: str, status_pipe: int, lifeline: int, lock_fd: int) -> NoReturn:
    """Be the guard, in the forked process.

    It has a session of its own, so that a Ctrl-C in the manager's terminal does not reach it. It closes all other
    descriptors of the manager: locks among them would outlive their holder, and the pipes of other guards would keep
    those guards waiting. It traces nothing: what it wrote to could be on the suspended device.
    """
    status = 1
    try:
        for entry in list(Path("/proc/self/fd").iterdir()):
            if int(entry.name) not in (0, 1, 2, status_pipe, lifeline, lock_fd):
                with suppress(OSError):
                    os.close(int(entry.name))
        steps.arm(0)
        steps.trace(0)
        os.setsid()
        for number in _SIGNALS:
            signal.signal(number, _interrupted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with IoctlDeviceMapper() as dm:
            os.write(status_pipe, _STARTED)
            try:
                dm.suspend(name)
            except DmthinError as error:
                status = 0
                os.write(status_pipe, str(error).encode()[:4096])
                os._exit(status)
            try:
                os.write(status_pipe, _SUSPENDED.encode())
                os.read(lifeline, 1)
            finally:
                dm.resume(name)
                status = 0
    finally:
        os._exit(status)
