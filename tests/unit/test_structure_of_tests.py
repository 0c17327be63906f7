"""Rules for the tests themselves: what they may import, how they are named, and that none sleeps or is skipped."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))
SCRIPTS = sorted(path for path in (CHECKOUT / "scripts").glob("*/*.py"))
SHARED = CHECKOUT / "tests/support"
NEVER = ("skip", "skipif", "xfail", "importorskip")


def relative(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def imports(path: Path) -> Iterator[str]:
    """The modules that a module imports, and with them the names that it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(path: Path) -> set[str]:
    """Every dotted name in a module: `os.fork`, `pytest.mark.skip`."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_module_imports_from_a_test_module(path: Path) -> None:
    assert [name for name in imports(path) if any(word.startswith("test_") for word in name.split("."))] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_import_nothing_of_the_tests(path: Path) -> None:
    assert [name for name in imports(path) if name.split(".")[0] == "tests"] == []


def test_no_two_test_modules_have_one_name() -> None:
    names = Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_tests_lie_in_test_modules_only() -> None:
    for path in TESTS:
        if not path.name.startswith("test_"):
            functions = [
                node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
            ]
            assert [name for name in functions if name.startswith("test_")] == [], relative(path)


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_is_skipped_or_expected_to_fail(path: Path) -> None:
    assert [name for name in attributes(path) if name.startswith("pytest.") and name.endswith(NEVER)] == []


@pytest.mark.parametrize("path", [path for path in TESTS if SHARED not in path.parents], ids=relative)
def test_sleeping_and_forking_are_left_to_what_tests_share(path: Path) -> None:
    """A test waits for a state, an event or a process, by enginelib.waiting and tests.support.processes."""
    assert attributes(path) & {"time.sleep", "os.fork"} == set()
    assert not {"time.sleep", "os.fork"} & set(imports(path))
