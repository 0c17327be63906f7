"""The main program: from the arguments to the exit status, with the translation of errors and signals."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from dmthin.cli.call import Call
from dmthin.cli.global_options import GlobalOptions, UsageError, split_globals
from dmthin.cli.output import Output
from dmthin.cli.signals import Interrupted, raised_in_main_thread
from dmthin.cli.streams import ReaderGone, drop, open_missing
from dmthin.errors import DmthinError, InvalidValue, OutputLost, Status
from dmthin.os_errors import COMMAND, explain

_READER_GONE = 141
"""The exit status of a program that was terminated by SIGPIPE, used if the reader of standard output is gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (`Status.exit_code`, or 128 + n after signal n). Never raise.

    Without `arguments`, use those of the process, and assume that it exits next: signals then terminate it silently.
    """
    owns_process = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    if owns_process:
        open_missing()
    output = Output(as_json="--json" in given)
    with raised_in_main_thread(output.note_second_signal, silent_afterwards=owns_process):
        try:
            status = _run(given, output)
            output.finish(closing=owns_process)
        except BaseException as error:
            status = _explain(error, output)
            if owns_process and isinstance(error, (ReaderGone, OutputLost)):
                drop(1)
        if owns_process:
            output.end_words()
    return status


def _run(given: list[str], output: Output) -> int:
    options, rest = split_globals(given)
    output.set_up(quiet=options.quiet, verbose=options.verbose)
    from dmthin.cli.commands import parse
    from dmthin.store.state.lock_waits import limit_waits

    try:
        arguments = parse(rest)
    except SystemExit as help_shown:
        return help_shown.code if isinstance(help_shown.code, int) else 0
    if not hasattr(arguments, "run"):
        output.raw_words(arguments.parser.format_help())
        return Status.INVALID.exit_code
    _require_place_for_size(options, takes_size=arguments.takes_size)
    limit_waits(math.inf if options.lock_timeout is None else options.lock_timeout)
    call = Call(options, arguments, output)
    with output.logging():
        command(arguments.run)(call)
    return 0


def command(name: str) -> Callable[[Call], None]:
    """Import and return the function `module:function`."""
    module, _, function = name.partition(":")
    found: Callable[[Call], None] = getattr(import_module(module), function)
    return found


def _require_place_for_size(options: GlobalOptions, *, takes_size: bool) -> None:
    """Raise InvalidValue for a --storage-opt size= of a command that does not take it."""
    if options.volume_options and not takes_size:
        raise InvalidValue(
            "the storage option size is valid for image import and container create only",
            hint="see also: dmthin container resize, dmthin pool extend",
        )


def _explain(error: BaseException, output: Output) -> int:
    """Print in one line why the command failed, and return its exit status."""
    match error:
        case Interrupted():
            output.interrupted(error.number)
            return 128 + error.number
        case ReaderGone():
            return _READER_GONE
        case UsageError():
            output.usage(error.usage)
        case DmthinError():
            pass
        case OSError():
            output.traceback(error)
            return _explain(_from_os(error), output)
        case _:
            output.traceback(error)
            hint = "" if output.verbose else "run it again with -v, and report its output"
            text = str(error) or "no text"
            output.error(DmthinError(f"this is a bug in dmthin: {type(error).__name__}: {text}", hint=hint))
            return Status.FAILED.exit_code
    output.error(error)
    return error.status.exit_code


def _from_os(error: OSError) -> DmthinError:
    """Translate an OSError that was not translated where it occurred."""
    name = os.fsdecode(error.filename or "")
    return explain(error.errno or 0, name, COMMAND, reason=error.strerror or str(error))
