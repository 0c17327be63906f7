"""The global options, which every command takes, at any position of the command line."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import InvalidValue

_DEFAULT_ROOT = "/var/lib/dmthin"
_FLAGS = {
    "--json": "json",
    "--dry-run": "dry_run",
    "--yes": "yes",
    "-y": "yes",
    "--quiet": "quiet",
    "-q": "quiet",
}
_VERBOSE = ("--verbose", "-v")
_LOCK_TIMEOUT = "--lock-timeout"
_VALUED = ("--root", "--storage-opt", _LOCK_TIMEOUT)
_NO_LIMIT = "none"
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_CLUSTER = re.compile(r"-[vqyHp]{2,}")
"""Several short options without values, global ones among them, in one argument: -qH."""


class UsageError(InvalidValue):
    """An invalid command line. `usage` is the usage of the command."""

    def __init__(self, message: str, *, usage: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.usage = usage


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The values of the global options. `store_options` are Docker's dm.*, `volume_options` those of one volume.

    `verbose` is the number of -v. `lock_timeout` is in seconds, `math.inf` for no limit; None if neither the option nor
    the environment variable is set.
    """

    root: Path
    store_options: tuple[str, ...] = ()
    volume_options: tuple[str, ...] = ()
    json: bool = False
    dry_run: bool = False
    yes: bool = False
    verbose: int = 0
    quiet: bool = False
    lock_timeout: float | None = None


def default_root() -> Path:
    """Return $DMTHIN_ROOT, or the default if it is unset or empty."""
    return Path(os.environ.get("DMTHIN_ROOT") or _DEFAULT_ROOT)


def parse_lock_timeout(text: str, what: str) -> float:
    """Return seconds, `math.inf` for `none`. Raise UsageError, which names `what`."""
    if text == _NO_LIMIT:
        return math.inf
    if not _SECONDS.fullmatch(text):
        raise UsageError(f"{what}: {text!r} is not a number of seconds", hint="write a number, or none for no limit")
    return float(text)


def split_globals(arguments: Sequence[str]) -> tuple[GlobalOptions, list[str]]:
    """Return the global options before a `--`, and the remaining arguments in their order. Raise UsageError."""
    flags: dict[str, bool] = {}
    verbose = 0
    values: dict[str, list[str]] = {name: [] for name in _VALUED}
    rest: list[str] = []
    left = iter(_without_clusters(arguments))
    for argument in left:
        name, equals, value = argument.partition("=")
        if argument == "--":
            rest += [argument, *left]
        elif argument in _FLAGS:
            flags[_FLAGS[argument]] = True
        elif argument in _VERBOSE:
            verbose += 1
        elif name in _VALUED:
            text = value if equals else next(left, None)
            if not text:
                raise UsageError(f"{name} needs a value", hint="see: dmthin --help")
            values[name].append(text)
        else:
            rest.append(argument)
    if verbose and flags.get("quiet"):
        raise UsageError("-v and -q exclude each other", hint="give one of them")
    root = Path(values["--root"][-1]) if values["--root"] else default_root()
    pairs = values["--storage-opt"]
    volume_options = tuple(filter(_is_of_volume, pairs))
    store_options = tuple(pair for pair in pairs if not _is_of_volume(pair))
    lock_timeout = None
    if given := values[_LOCK_TIMEOUT]:
        lock_timeout = parse_lock_timeout(given[-1], _LOCK_TIMEOUT)
    elif default := os.environ.get("DMTHIN_LOCK_TIMEOUT"):
        lock_timeout = parse_lock_timeout(default, "DMTHIN_LOCK_TIMEOUT")
    options = GlobalOptions(root, store_options, volume_options, verbose=verbose, lock_timeout=lock_timeout, **flags)
    return options, rest


def _without_clusters(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with clusters of short options split up, to find the global ones among them."""
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            yield argument
            yield from left
        elif _CLUSTER.fullmatch(argument):
            yield from (f"-{letter}" for letter in argument[1:])
        else:
            yield argument


def _is_of_volume(text: str) -> bool:
    return text.partition("=")[0].strip().lower() == "size"
