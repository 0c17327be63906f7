"""Output of commands: data on standard output, messages on standard error, both as JSON with --json."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from dmthin.cli.streams import check_close, drop, lost, written
from dmthin.errors import DmthinError

JSON_VERSION = 1
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class LiveLine(Protocol):
    """A progress line on the terminal."""

    def clear(self) -> None:
        """Erase the line before other output."""


class Output:
    """The two output streams of a command. With `as_json`, each line of standard error is an object.

    `made` is what the command has changed so far, for the error if it cannot be written.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.live_line: LiveLine | None = None
        self.made = ""

    def set_up(self, *, quiet: bool, verbose: int) -> None:
        """Take the options over once they are known."""
        self.quiet = quiet
        self.verbose = verbose

    def data(self, text: str) -> None:
        """Write text, which includes its newline, to standard output. Raise ReaderGone, OutputLost."""
        if not text:
            return
        if sys.stdout is None:
            raise lost("it is closed", self.made)
        encoding = sys.stdout.encoding or "utf-8"
        with written(self.made):
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()

    def document(self, content: Mapping[str, Any]) -> None:
        """Write a JSON object with the version of the format as its first key. Raise ReaderGone, OutputLost."""
        self.data(json.dumps({"version": JSON_VERSION, **content}, indent=2) + "\n")

    def plan(self, commands: Iterable[str]) -> None:
        """Write the commands of a dry run; with --json, as a document without comments.

        Raise ReaderGone, OutputLost.
        """
        lines = list(commands)
        if self.as_json:
            self.document({"plan": [line for line in lines if not line.startswith("#")]})
        else:
            self.data("".join(f"{line}\n" for line in lines))

    def changed(self, text: str, content: Mapping[str, Any], *, data: str = "") -> None:
        """Report a change that was made: by `data` on standard output and in words, or with --json by `content`.

        Raise OutputLost, which names the change.
        """
        self.made = text
        if self.as_json:
            self.document(content)
        else:
            self.data(data)
        self.say(text)

    def say(self, text: str) -> None:
        """Print what was done, unless quiet or JSON."""
        if not self.quiet and not self.as_json:
            self.raw_words(one_line(text) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning, unless quiet."""
        if not self.quiet:
            self._words("warning", text)

    def log(self, text: str) -> None:
        """Print a record of the log, for -v."""
        self._words("log", text)

    def error(self, error: DmthinError) -> None:
        """Print why the command failed."""
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
        """Print the usage of a command, unless JSON."""
        if not self.as_json:
            self.raw_words(text)

    def interrupted(self, number: int) -> None:
        """Print that a signal interrupted the command."""
        how = _SIGNALS.get(signal.Signals(number), "stopped")
        text = f"{how}: the change was rolled back, or will be recovered by the next command"
        if self.as_json:
            self._object("error", {"message": text, "hint": None, "status": "interrupted", "exit_code": 128 + number})
        else:
            self.raw_words(f"dmthin: {text}\n")

    def note_second_signal(self) -> None:
        """Print a note at the second signal. Called from a signal handler, so it bypasses all buffers."""
        with suppress(OSError):
            os.write(2, b"dmthin: rolling back; a further signal exits now, and the next command recovers\n")

    def traceback(self, error: BaseException) -> None:
        """Print the traceback of an unexpected error, if verbose."""
        if self.verbose:
            import traceback

            self.raw_words("".join(traceback.format_exception(error)))

    def raw_words(self, text: str) -> None:
        """Write text unchanged to standard error. Ignore errors: there is no other place to report them."""
        if self.live_line is not None:
            self.live_line.clear()
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def finish(self, *, closing: bool) -> None:
        """Flush standard output; with `closing`, the process ends next. Raise ReaderGone, OutputLost."""
        if sys.stdout is not None:
            with written(self.made):
                sys.stdout.flush()
                if closing:
                    check_close(sys.stdout.fileno())

    def end_words(self) -> None:
        """Flush standard error: if the interpreter finds that it cannot be written, the exit status is 120."""
        if sys.stderr is not None:
            try:
                sys.stderr.flush()
            except (OSError, ValueError):
                drop(2)

    def terminal(self) -> TextIO | None:
        """Return standard error if it is a terminal, None otherwise, if quiet or with JSON."""
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
    """Return the text with line breaks and control characters escaped: file names can contain them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
