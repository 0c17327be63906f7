"""The command line of `scripts/test`, and what each tier is."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testlib import matrix
from testlib.running import Interrupted, Lane, Outcome, Step, ending_signals_raise, run_lanes, say, venv
from testlib.selection import (
    CHECKOUT,
    TESTS,
    TIERS,
    USUAL_TIERS,
    Place,
    Selection,
    UsageError,
    chosen,
    looks_like_a_path,
    whole_tier,
)

DURATIONS = TESTS / "durations.json"

_NOTHING_SELECTED = 5
_USAGE = "scripts/test [OPTION]... [PATH[::TEST]]... [PYTEST ARGUMENT]..."
_DESCRIPTION = """\
Set up what tests need, and run them. Without a PATH: all tiers but matrix, or those given by --tier.

  lint     ruff check, ruff format --check, mypy
  unit     anywhere, as any user
  kernel   on a real thin pool, in user-mode-linux guests
  engine   the guests themselves, QEMU; a real dockerd and a real containerd, in guests of their own
  matrix   not unless asked for: what each engine of several Debian releases does, in guests that are that release

A PATH is a test module or a folder of them, with ::TEST one test. Each runs where it belongs, on the host or in a
guest, and only what that takes is set up."""
_EPILOG = """\
Everything from the first option on that is not known here goes to pytest.

examples:
  scripts/test tests/kernel/test_loop.py
  scripts/test tests/unit/test_locks.py tests/engine/docker
  scripts/test tests/kernel/test_store.py::test_sizes_only_grow
  scripts/test --tier kernel -k resize

exit status: 0 if everything passed, 1 if something failed, 2 for a usage error, 5 if no test was selected, 128+n if
signal n ended it."""
_WITH_EXPRESSION = ("-k", "-m")
_MODULES_OF_A_PROCESS = 4
"""Fewer unit tests than these modules hold are not worth another process on the host."""

_GUEST: tuple[str, ...] = ()
_ENGINE_GUEST = ("--udev", "--memory", "4G")
_FOR_GUESTS = ("--rootfs", "--engines", "--archives")


def parser() -> argparse.ArgumentParser:
    """The options; kept apart for the tests."""
    options = argparse.ArgumentParser(
        prog="scripts/test", description=_DESCRIPTION, epilog=_EPILOG, usage=_USAGE, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = options.add_argument
    add("--tier", action="append", default=[], choices=TIERS, help="run this tier; may be given several times")
    deep = "all tiers, and many more examples of each property that Hypothesis tests (DMTHIN_HYPOTHESIS=deep)"
    add("--all", action="store_true", help=deep)
    add("--system", action="append", default=[], choices=matrix.SYSTEMS,
        help="run the tier matrix with this Debian release only; may be given several times")  # fmt: skip
    add("--write", action="store_true", help="write what the tier matrix found to docs/engines.md")
    add("--jobs", type=number, default=2, metavar="N", help="processes or guests side by side (default 2)")
    add("--record-durations", action="store_true",
        help="keep what each module took in tests/durations.json, by which guests share them")  # fmt: skip
    return options


def number(text: str) -> int:
    """How many run side by side."""
    if not (text.isdecimal() and 0 < int(text) < 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 99")
    return int(text)


def main(words: Sequence[str] | None = None) -> int:
    """Run `scripts/test`; the exit status."""
    options, arguments, paths = parse(sys.argv[1:] if words is None else words)
    environment = {"DMTHIN_HYPOTHESIS": "deep"} if options.all else {}
    try:
        selection = chosen(paths, Path.cwd()) if paths else None
    except UsageError as error:
        parser().error(str(error))
    asked = TIERS if options.all else options.tier or USUAL_TIERS
    tiers = tiers_of(selection) if selection else tuple(tier for tier in TIERS if tier in asked)
    if (options.system or options.write) and "matrix" not in tiers:
        parser().error("--system and --write concern the tier matrix: give --tier matrix too")
    try:
        with ending_signals_raise():
            return _run(tiers, selection, options, arguments, environment)
    except Interrupted as interrupted:
        return 128 + interrupted.number


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The options, the arguments for pytest, the paths. Ends with status 2 and a word on what is wrong."""
    options = parser()
    chosen_options, others = options.parse_known_args(words)
    first = next((place for place, word in enumerate(others) if word.startswith("-")), len(others))
    paths, arguments = others[:first], others[first:]
    values = {place + 1 for place, word in enumerate(arguments) if word in _WITH_EXPRESSION}
    late = {place for place, word in enumerate(arguments) if looks_like_a_path(word)} - values
    paths += [arguments[place] for place in sorted(late)]
    arguments = [word for place, word in enumerate(arguments) if place not in late]
    if paths and (chosen_options.tier or chosen_options.all):
        options.error("a path says by itself where it runs: give either paths, or --tier and --all")
    if chosen_options.all and chosen_options.tier:
        options.error("--all is all tiers: give either that or --tier")
    if chosen_options.write and (paths or arguments):
        options.error("docs/engines.md is written by whole systems only")
    if chosen_options.record_durations and (paths or arguments):
        options.error("durations are recorded of whole tiers only")
    return chosen_options, arguments, paths


def tiers_of(selection: Selection) -> tuple[str, ...]:
    """The tiers that selected tests belong to, in their order."""
    found = {place.name.partition("_")[0].lower() for place in selection.words}
    return tuple(tier for tier in TIERS if tier in found)


def _run(
    tiers: Sequence[str],
    selection: Selection | None,
    options: argparse.Namespace,
    arguments: Sequence[str],
    environment: dict[str, str],
) -> int:
    _set_up("--dev")
    total = Outcome()
    for tier in tiers:
        begun = time.monotonic()
        if tier == "lint":
            failed = _lint()
            total.selected = True
        else:
            wanted = selection or whole_tier(tier)
            lanes = _matrix_lanes(wanted, options) if tier == "matrix" else _lanes(tier, wanted, options.jobs)
            outcome = run_lanes(lanes, arguments, environment)
            if tier == "matrix" and options.write:
                matrix.write(outcome.left, _words_of(options))
            failed = outcome.failed
            total.selected = total.selected or outcome.selected
            if tier != "matrix":  # whose modules of the kernel tier have taken other times there
                total.seconds |= outcome.seconds
        total.failed += failed
        say(f"{tier}: {'failed' if failed else 'passed'} in {time.monotonic() - begun:.0f} s")
    if total.failed:
        say(f"failed: {' '.join(total.failed)}")
        return 1
    if not total.selected:
        say("no test was selected")
        return _NOTHING_SELECTED
    if options.record_durations:
        _record(total.seconds)
    say(f"all passed: {' '.join(tiers)}")
    return 0


def _set_up(*words: str) -> None:
    if subprocess.run([CHECKOUT / "scripts/setup", *words], stdin=subprocess.DEVNULL).returncode != 0:
        say("scripts/setup could not bring what is missing")
        sys.exit(1)


def _lint() -> list[str]:
    """Run the linters; return the names of those that found something."""
    programs = venv() / "bin"
    lines = {"ruff": ["ruff", "check", "."], "format": ["ruff", "format", "--check", "."], "mypy": ["mypy"]}
    failed = []
    for name, (program, *arguments) in lines.items():
        say(" ".join([program, *arguments]))
        if subprocess.run([programs / program, *arguments], cwd=CHECKOUT).returncode != 0:
            failed.append(name)
    return failed


def _lanes(tier: str, selection: Selection, jobs: int) -> list[Lane]:
    """What runs side by side for a tier, once what it takes is there."""
    match tier:
        case "unit":
            return _sharing("unit", selection, Place.UNIT, None, jobs)
        case "kernel":
            _set_up("--vm", "uml")
            return _sharing("kernel", selection, Place.KERNEL, _GUEST, jobs)
        case _:
            return _engine_lanes(selection, jobs)


def _matrix_lanes(selection: Selection, options: argparse.Namespace) -> list[Lane]:
    """Each system has its turn in one of the lanes; those that were made by `scripts/setup --system` come first."""
    systems = [system for system in matrix.SYSTEMS if system in (options.system or matrix.SYSTEMS)]
    _set_up("--vm", "uml", "--engines", *(word for system in systems for word in matrix.setup_words(system)))
    guest, host = (selection.words.get(place, ()) for place in (Place.MATRIX, Place.MATRIX_HOST))
    steps = [list(matrix.steps(system, guest, host, _ENGINE_GUEST)) for system in systems]
    count = min(options.jobs, len(systems))
    return [
        Lane(
            f"matrix, {' and '.join(systems[number::count])}", [step for each in steps[number::count] for step in each]
        )
        for number in range(count)
    ]


def _words_of(options: argparse.Namespace) -> str:
    """The command line that writes again what this one has written."""
    return " ".join(["scripts/test --tier matrix --write", *(f"--system {system}" for system in options.system)])


def _sharing(name: str, selection: Selection, place: Place, guest: Sequence[str] | None, jobs: int) -> list[Lane]:
    modules = len(selection.modules(place))
    count = min(jobs, modules if guest is not None else -(-modules // _MODULES_OF_A_PROCESS))
    step = Step(name, selection.words[place], guest)
    names = [name] if count == 1 else [f"{name} {number}/{count}" for number in range(1, count + 1)]
    say(f"{name}, {count} side by side" if count > 1 else name)
    return [Lane(name, [step]) for name in names]


def _engine_lanes(selection: Selection, jobs: int) -> list[Lane]:
    """One lane drives guests from the host, and joins the others when it is through with that."""
    host, guest = (selection.words.get(place, ()) for place in (Place.ENGINE_HOST, Place.ENGINE_GUEST))
    _set_up("--vm", "uml", *(["--vm", "qemu"] if host else []), *(_FOR_GUESTS if guest else []))
    on_host = [Step("host", host)] if host else []
    in_guest = [Step("guests", guest, _ENGINE_GUEST, stays=True)] if guest else []
    count = min(jobs, len(selection.modules(Place.ENGINE_GUEST)) + len(on_host))
    if count == 1 or not guest:
        return [Lane("engine", [*on_host, *in_guest])]
    first = Lane("engine, on the host, then in a guest" if host else "engine", [*on_host, *in_guest])
    return [*(Lane(f"engine, in guest {number}", in_guest) for number in range(1, count)), first]


def _record(seconds: dict[str, float]) -> None:
    """Keep what modules took, beside that of those which did not run."""
    known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    known |= {module: max(1, round(time)) for module, time in seconds.items()}
    kept = {module: known[module] for module in sorted(known) if (CHECKOUT / module).exists()}
    DURATIONS.write_text(json.dumps(kept, indent=2) + "\n")
