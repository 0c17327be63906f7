"""SIGINT, SIGTERM and SIGHUP as an exception in the main thread, so that what is under way is undone."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked us to end. Not an Exception: nobody but the command's outermost floor may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised_in_main_thread(note_second: Callable[[], None], *, silent_afterwards: bool) -> Iterator[None]:
    """Raise Interrupted at the first ending signal inside the block; later ones let the clean-up go on.

    The second is answered by `note_second`, the third ends the process at once: the store survives that. A signal that
    is ignored (nohup, background jobs) stays ignored. Afterwards the former handlers are back, or, with
    `silent_afterwards`, the system's own, which end a process without a traceback. Outside of the main thread nothing
    happens here, for Python delivers no signal there.
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
