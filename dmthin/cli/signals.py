"""SIGINT, SIGTERM and SIGHUP as an exception in the main thread, so that the current operation is rolled back."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal requested termination. Not an Exception: only the main program must catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised_in_main_thread(note_second: Callable[[], None], *, silent_afterwards: bool) -> Iterator[None]:
    """Raise Interrupted at the first terminating signal inside the block; later ones do not interrupt the roll-back.

    `note_second` is called for the second one; the third exits immediately, which the next command recovers from. A
    signal that is ignored (nohup, background jobs) stays ignored. At the end the previous handlers are restored, or,
    with `silent_afterwards`, the default actions, which terminate a process without a traceback. Do nothing outside of
    the main thread, where Python does not run signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler(note_second)
    former = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, signal.SIG_DFL if silent_afterwards or before is None else before)


class _Handler:
    def __init__(self, note_second: Callable[[], None]) -> None:
        self._note_second = note_second
        self._seen = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen == 1:
            raise Interrupted(number)
        if self._seen == 2:
            self._note_second()
        else:
            os._exit(128 + number)
