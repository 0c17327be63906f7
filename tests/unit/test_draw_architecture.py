"""The drawing in docs/architecture.md is current, and shows what the code imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
SCRIPT = CHECKOUT / "scripts/draw-architecture"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `app` with a module, two packages on it, and one of those on the other."""
    for name, text in {
        "base.py": "",
        "low/__init__.py": "",
        "low/one.py": "from app import base\nfrom app.low import two\n",
        "low/two.py": "import os\nfrom ..base import something\n",
        "high/first.py": "import app.low.one\nfrom app.low import one, two\n",
        "high/inner/deep.py": "def use():\n    from ...low.two import part\n",
        "high/second.py": "from app.high.inner import deep\n",
    }.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "app"


def test_the_drawing_is_current() -> None:
    checked = run("--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_new_import_makes_the_drawing_stale(tmp_path: Path) -> None:
    changed = tmp_path / "dmthin"
    shutil.copytree(CHECKOUT / "dmthin", changed, ignore=shutil.ignore_patterns("__pycache__"))
    assert run("--check", "--package", changed).returncode == 0
    (changed / "kernel/unknown.py").write_text("from dmthin import units\n")
    checked = run("--check", "--package", changed)
    assert checked.returncode == 1
    assert "is not current; run: scripts/draw-architecture" in checked.stderr


def test_boxes_stand_on_what_they_import(package: Path) -> None:
    drawn = run("--print", "--package", package)
    assert drawn.returncode == 0, drawn.stderr
    lines = [line.strip("│┌─┐└┘ ") for line in drawn.stdout.splitlines()]
    assert list(filter(None, lines)) == [
        "high/",
        "high, 2 modules",
        "→ high/inner 1  low 2",
        "high/inner, 1 module",
        "→ low 1",
        "low, 2 modules",
        "→ app 2",
        "app, 1 module",
    ]
    assert len({len(line) for line in drawn.stdout.splitlines()}) == 1


def test_packages_on_one_floor_stand_side_by_side(package: Path) -> None:
    (package / "side").mkdir()
    (package / "side/alone.py").write_text("from app.low import one\n")
    drawn = run("--print", "--package", package).stdout
    assert any("side, 1 module" in line and "high/" in line for line in drawn.splitlines())


def test_a_circle_of_packages_is_an_error(package: Path) -> None:
    with (package / "low/two.py").open("a") as module:
        module.write("from app.high import first\n")
    drawn = run("--print", "--package", package)
    assert drawn.returncode == 1
    assert "imports go in a circle: high -> low -> high" in drawn.stderr


def test_numbers(package: Path) -> None:
    lines = run("--numbers", "--package", package).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["package", "modules", "lines", "longest", "floors", "between", "out", "to", "in", "from"],
        ["(app)", "1", "0", "0", "1", "0", "0", "2"],
        ["high", "2", "3", "2", "1", "0", "3", "0"],
        ["high/*", "3", "5", "2", "2", "1", "3", "0"],
        ["high/inner", "1", "2", "2", "1", "0", "1", "1"],
        ["low", "2", "4", "2", "2", "1", "2", "3"],
        ["all", "6", "9", "2", "4", "7"],
    ]
