"""Where the command speaks: data on standard output, words on standard error, both as JSON if asked."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from dmthin.errors import DmthinError

JSON_VERSION = 1
_ENDED_BY = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class ReaderGone(Exception):
    """Whoever read our standard output has closed it: nobody is there to be told."""


class LiveLine(Protocol):
    """A line on the terminal that is rewritten while work goes on."""

    def clear(self) -> None:
        """Erase it, so that other words can be written."""


class Output:
    """One command's two streams. With `as_json` every line of standard error is an object, and chatter is left out."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.live_line: LiveLine | None = None

    def set_up(self, *, quiet: bool, verbose: int) -> None:
        """Take the options over once they are known."""
        self.quiet = quiet
        self.verbose = verbose

    def data(self, text: str) -> None:
        """Write text, with its newline, to standard output. Raises ReaderGone, OSError."""
        if not text:
            return
        if sys.stdout is None:
            raise OSError("standard output is closed")
        encoding = sys.stdout.encoding or "utf-8"
        with reader_watched():
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()

    def document(self, content: Mapping[str, Any]) -> None:
        """Write one JSON object that begins with its version."""
        self.data(json.dumps({"version": JSON_VERSION, **content}, indent=2) + "\n")

    def plan(self, commands: Iterable[str]) -> None:
        """What a dry run shows: lines to paste, or a document of them. Comments are for people only."""
        lines = list(commands)
        if self.as_json:
            self.document({"plan": [line for line in lines if not line.startswith("#")]})
        else:
            self.data("".join(f"{line}\n" for line in lines))

    def say(self, text: str) -> None:
        """Tell a person what was done."""
        if not self.quiet and not self.as_json:
            self.raw_words(one_line(text) + "\n")

    def warn(self, text: str) -> None:
        """Tell what deserves attention though the command goes on."""
        if not self.quiet:
            self._words("warning", text)

    def log(self, text: str) -> None:
        """Tell what happens inside, for -v."""
        self._words("log", text)

    def error(self, error: DmthinError) -> None:
        """Tell why the command failed."""
        if not self.as_json:
            self.raw_words(f"dmthin: {one_line(str(error))}\n")
            return
        self._object(
            "error",
            {
                "message": error.message,
                "hint": error.hint or None,
                "status": error.status.name.lower(),
                "exit_code": error.status.exit_code,
            },
        )

    def usage(self, text: str) -> None:
        """Show how a command line should look."""
        if not self.as_json:
            self.raw_words(text)

    def interrupted(self, number: int) -> None:
        """Tell what a signal has left."""
        how = _ENDED_BY.get(signal.Signals(number), "ended")
        text = f"{how}: what was under way has been undone, or is ended by the next command"
        if self.as_json:
            self._object("error", {"message": text, "hint": None, "status": "interrupted", "exit_code": 128 + number})
        else:
            self.raw_words(f"dmthin: {text}\n")

    def note_second_signal(self) -> None:
        """Answer impatience during a clean-up; called from a signal handler, so past all buffers."""
        with suppress(OSError):
            os.write(2, b"dmthin: still cleaning up; once more ends it at once, and the next command cleans up\n")

    def traceback(self, error: BaseException) -> None:
        """Show where an unexpected error comes from, if asked for."""
        if self.verbose:
            import traceback

            self.raw_words("".join(traceback.format_exception(error)))

    def raw_words(self, text: str) -> None:
        """Write text as it is to standard error; one that is closed is no reason to fail."""
        if self.live_line is not None:
            self.live_line.clear()
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def flush(self) -> None:
        """Make sure that what argparse has printed is out. Raises ReaderGone, OSError."""
        if sys.stdout is not None:
            with reader_watched():
                sys.stdout.flush()

    def terminal(self) -> TextIO | None:
        """Standard error if a person watches it and wants words."""
        watched = sys.stderr is not None and sys.stderr.isatty()
        return sys.stderr if watched and not self.quiet and not self.as_json else None

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write what dmthin logs to standard error during the block: warnings, with -v all, with -vv each ioctl too."""
        import logging

        from dmthin import steps

        speak = self.warn, self.log

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                warn, log = speak
                (warn if record.levelno >= logging.WARNING else log)(record.getMessage())

        logger, handler = logging.getLogger("dmthin"), Handler()
        former = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.WARNING)
        steps.trace(self.verbose)
        try:
            yield
        finally:
            steps.trace(0)
            logger.removeHandler(handler)
            logger.setLevel(former)

    def _words(self, kind: str, text: str) -> None:
        if self.as_json:
            self._object(kind, text)
        else:
            mark = "" if kind == "log" else f"{kind}: "
            self.raw_words(f"dmthin: {mark}{one_line(text)}\n")

    def _object(self, kind: str, content: object) -> None:
        self.raw_words(json.dumps({"version": JSON_VERSION, kind: content}) + "\n")


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which a file name can bring in."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextmanager
def reader_watched() -> Iterator[None]:
    """Turn what goes wrong with standard output inside into ReaderGone, or an OSError that names it."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None
