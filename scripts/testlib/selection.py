"""Which tests are asked for, and where each of them runs."""

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = CHECKOUT / "tests"
TIERS = ("lint", "unit", "kernel", "engine", "matrix")
USUAL_TIERS = TIERS[:-1]
"""What runs unless it is asked for otherwise: the matrix takes other Debian releases, and longer."""

_MATRIX = (TESTS / "engine/matrix", TESTS / "engine/systemd")


class Place(Enum):
    """Where tests run: a folder below tests, with or without those below it."""

    UNIT = "unit"
    KERNEL = "kernel"
    ENGINE_HOST = "engine, on the host"
    ENGINE_GUEST = "engine, in a guest"
    MATRIX = "matrix, in guests of several systems"
    MATRIX_HOST = "matrix, on the host, which boots guests of several systems"


class UsageError(Exception):
    """What was asked for cannot be run; the text says why."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Words for pytest (paths below the checkout, with or without a test), by the place where they run."""

    words: Mapping[Place, Sequence[str]] = field(default_factory=dict)

    def modules(self, place: Place) -> list[str]:
        """The test modules that the words of a place stand for, as paths below the checkout."""
        found: dict[str, None] = {}
        for word in self.words.get(place, ()):
            path = CHECKOUT / word.partition("::")[0]
            for module in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
                if place_of(module) is place:
                    found[str(module.relative_to(CHECKOUT))] = None
        return list(found)


def whole_tier(tier: str) -> Selection:
    """All tests of a tier."""
    match tier:
        case "unit":
            return Selection({Place.UNIT: ["tests/unit"]})
        case "kernel":
            return Selection({Place.KERNEL: ["tests/kernel"]})
        case "engine":
            return _sorted([TESTS / "engine"])
        case "matrix":
            return _sorted(_MATRIX)
        case _:
            return Selection()


def chosen(words: Iterable[str], folder: Path) -> Selection:
    """The tests that words of the command line name, as paths below `folder` or else below the checkout.

    Raises UsageError for what is not there or holds no tests.
    """
    return _sorted([_found(word, folder) for word in words])


def looks_like_a_path(word: str) -> bool:
    """Whether a word among arguments for pytest names tests, rather than the value of an option."""
    return word.startswith("tests/") or ".py::" in word or word.endswith(".py")


def _found(word: str, folder: Path) -> Path:
    """The path of a word, with the test in it if it names one."""
    name, colons, test = word.partition("::")
    path = next((base / name for base in (folder, CHECKOUT) if (base / name).exists()), None)
    if path is None:
        raise UsageError(f"there is no {name}")
    path = Path(os.path.normpath(path.resolve()))
    if path != TESTS and TESTS not in path.parents:
        raise UsageError(f"{name} is not below {TESTS}")
    if colons:
        _require_test(path, name, test)
    elif path.is_file() and not path.match("test_*.py"):
        raise UsageError(f"{name} holds no tests")
    return path.with_name(f"{path.name}{colons}{test}")


def _require_test(path: Path, name: str, test: str) -> None:
    if not path.is_file():
        raise UsageError(f"{name} is no module of tests")
    functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    if test.partition("[")[0].rpartition("::")[2] not in functions:
        raise UsageError(f"there is no {test} in {name}")


def _sorted(paths: Iterable[Path]) -> Selection:
    """Each path with the place where it runs. One that holds tests of several places is divided."""
    words: dict[Place, list[str]] = {}
    for path in paths:
        for part in _divided(path):
            words.setdefault(place_of(part), []).append(str(part.relative_to(CHECKOUT)))
    return Selection({place: words[place] for place in Place if place in words})


def _divided(path: Path) -> list[Path]:
    if path == TESTS:
        return [TESTS / "unit", TESTS / "kernel", *_divided(TESTS / "engine")]
    if path == TESTS / "engine":
        entries = (entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry not in _MATRIX)
        folders = [entry for entry in entries if any(entry.glob("test_*.py"))]
        return [*sorted(path.glob("test_*.py")), *folders]
    if path.is_dir() and not any(path.rglob("test_*.py")):
        raise UsageError(f"{path} holds no tests")
    return [path]


def place_of(path: Path) -> Place:
    """Where what a path names runs. In tests/engine what drives guests by itself lies on top."""
    match path.relative_to(TESTS).parts:
        case ("unit", *_):
            return Place.UNIT
        case ("kernel", *_):
            return Place.KERNEL
        case ("engine", "matrix", *_):
            return Place.MATRIX
        case ("engine", "systemd", *_):
            return Place.MATRIX_HOST
        case ("engine", _):
            return Place.ENGINE_HOST if ".py" in path.name else Place.ENGINE_GUEST
        case _:
            return Place.ENGINE_GUEST
