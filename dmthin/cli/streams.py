"""Standard output and standard error that may be closed, full, or without a reader: GNU's closeout and stdopen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dmthin.errors import OutputLost


class ReaderGone(Exception):
    """The reader of standard output has closed it (EPIPE). There is nothing left to report."""


def open_missing() -> None:
    """Open /dev/null for each standard descriptor that is closed, so that no file or device gets its number.

    Output is opened for reading: what is written to it fails, as it does on a closed descriptor.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is `fd`


@contextmanager
def written(made: str = "") -> Iterator[None]:
    """Translate errors of writing to standard output in the block: raise OutputLost, which says what was `made`.

    Raise ReaderGone for EPIPE if nothing was: a reader such as head(1) may leave when it has enough.
    """
    try:
        yield
    except BrokenPipeError:
        if not made:
            raise ReaderGone from None
        raise lost("its reader is gone", made) from None
    except OSError as error:
        raise lost(error.strerror or str(error), made) from None


def lost(reason: str, made: str = "") -> OutputLost:
    """Return the error for output that cannot be written. `made` is what the command has changed, if it has."""
    if made:
        return OutputLost(f"{made}, but the output could not be written: {reason}", hint="the change is in effect")
    return OutputLost(f"the output could not be written: {reason}")


def check_close(fd: int) -> None:
    """Raise OSError for what close(2) would report: a network file system has errors of earlier writes there."""
    os.close(os.dup(fd))


def drop(fd: int) -> None:
    """Redirect a stream to /dev/null: the interpreter flushes it at its exit, which would fail, with status 120."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)
