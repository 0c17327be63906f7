"""The argument parser: argparse with error messages that suggest what was meant, and nouns with verbs."""

import argparse
import re
from argparse import Action, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

from dmthin.cli.global_options import UsageError
from dmthin.cli.streams import lost, written

_GLOBAL_HELP = "global options can be given anywhere, see: dmthin --help"
_GLOBAL_NAMES = (
    "--root",
    "--storage-opt",
    "--lock-timeout",
    "--json",
    "--dry-run",
    "--yes",
    "--verbose",
    "--quiet",
    "--help",
)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError instead of exiting, with a suggestion in its hint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_HelpFormatter, allow_abbrev=False)
        self._arguments: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and record the arguments for error messages. Raise UsageError."""
        self._arguments = list(args or ())
        return super().parse_known_args(args, namespace)

    def parse_command(self, arguments: Sequence[str]) -> Namespace:
        """Parse a whole command line; `help COMMAND` is the same as `COMMAND --help`. Raise UsageError, SystemExit."""
        words = list(arguments)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        known: Namespace
        known, extra = self.parse_known_args(_with_joined_values(words))
        if extra:
            known.parser.unexpected(extra)
        return known

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for an error that argparse has found."""
        missing = re.sub(r"^the following arguments are required: ", "missing argument: ", message)
        # A missing argument after an unknown option: the option is the mistake to report.
        unknown = [word for word in self._arguments if word.startswith("-") and word not in ("-", "--")]
        if missing != message and (unknown := [word for word in unknown if not self._knows(word)]):
            self.unexpected(unknown)
        self.reject(missing)

    def reject(self, message: str, hint: str = "") -> NoReturn:
        """Raise UsageError with the usage of this command. The default hint refers to its help."""
        raise UsageError(message, usage=self.format_usage(), hint=hint or f"see: {self.prog} --help")

    def unexpected(self, arguments: Sequence[str]) -> NoReturn:
        """Raise UsageError for arguments that the command does not take."""
        first = arguments[0]
        if not first.startswith("-") or first == "-":
            self.reject(f"unexpected argument {first!r}")
        if re.match(r"-[0-9]", first):
            self.reject(f"{first!r} is not a size", "sizes can only grow: use 20G, or an increment such as +5G or +20%")
        name = first.partition("=")[0]
        known = [option for option in (*self._option_string_actions, *_GLOBAL_NAMES) if option.startswith("--")]
        self.reject(f"unknown option {name}", _did_you_mean(name, known))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or version. Unlike argparse's method, raise ReaderGone or OutputLost if that fails."""
        if file is None:  # standard output is closed
            raise lost("it is closed")
        with written():
            file.write(message)
            file.flush()

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what = (action.metavar if isinstance(action.metavar, str) else "value").lower()
        known = list(map(str, action.choices))
        hint = _elsewhere(self, value) or _did_you_mean(str(value), known) or f"choose from {', '.join(known)}"
        self.reject(f"unknown {what} {value!r}", hint)

    def _knows(self, word: str) -> bool:
        return word.partition("=")[0] in self._option_string_actions or word[:2] in self._option_string_actions

    def children(self) -> "dict[str, Parser]":
        """Return the nouns or verbs of this parser, by name and alias."""
        return {
            name: child
            for action in self._actions
            if isinstance(action.choices, dict)
            for name, child in action.choices.items()
        }


def add_noun(nouns: Any, name: str, summary: str) -> Any:
    """Add a noun to argparse's `nouns`, and return argparse's object to add its verbs to."""
    parser = nouns.add_parser(name, help=summary, description=_sentence(summary), epilog=_GLOBAL_HELP)
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="verbs", metavar="VERB")


def add_verb(
    noun: Any,
    name: str,
    function: str,
    summary: str,
    *examples: str,
    alias: str = "",
    note: str = "",
    takes_size: bool = False,
) -> Parser:
    """Add a verb and return its parser.

    `function` is `module:name` in dmthin.cli. `takes_size`: the verb accepts --storage-opt size=.
    """
    shown = "".join(f"  {example}\n" for example in examples)
    verb: Parser = noun.add_parser(
        name,
        help=summary,
        aliases=[alias] if alias else [],
        description=_sentence(summary) + (f" {note}" if note else ""),
        epilog=f"examples:\n{shown}\n{_GLOBAL_HELP}",
    )
    verb.set_defaults(parser=verb, run=f"dmthin.cli.{function}", takes_size=takes_size)
    return verb


def _with_joined_values(arguments: Sequence[str]) -> list[str]:
    """Rewrite `-O -name` as `--sort=-name`: argparse would take `-name` for an option."""
    joined: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            return [*joined, argument, *left]
        if argument in ("-O", "--sort"):
            value = next(left, None)
            joined.append(argument if value is None else f"--sort={value}")
        else:
            joined.append(argument)
    return joined


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1, 0.65)
    return f"did you mean {near[0]}?" if near else ""


def _elsewhere(parser: Parser, word: str) -> str:
    """Return a hint if `word` is not a noun but a verb of some nouns."""
    places = [f"{parser.prog} {name} {word}" for name, noun in parser.children().items() if word in noun.children()]
    return f"did you mean {' or '.join(places)}?" if places else ""


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."
