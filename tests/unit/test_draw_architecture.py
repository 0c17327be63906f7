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
    """A package `house` with a ground floor, two packages on it, and one of those on the other."""
    for name, text in {
        "ground.py": "",
        "cellar/__init__.py": "",
        "cellar/wine.py": "from house import ground\nfrom house.cellar import rack\n",
        "cellar/rack.py": "import os\nfrom ..ground import something\n",
        "hall/guests.py": "import house.cellar.wine\nfrom house.cellar import wine, rack\n",
        "hall/upstairs/bed.py": "def sleep():\n    from ...cellar.rack import bottle\n",
        "hall/stairs.py": "from house.hall.upstairs import bed\n",
    }.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_the_drawing_is_current() -> None:
    checked = run("--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_new_import_makes_the_drawing_stale(tmp_path: Path) -> None:
    changed = tmp_path / "dmthin"
    shutil.copytree(CHECKOUT / "dmthin", changed, ignore=shutil.ignore_patterns("__pycache__"))
    assert run("--check", "--package", changed).returncode == 0
    (changed / "kernel/unheard_of.py").write_text("from dmthin import units\n")
    checked = run("--check", "--package", changed)
    assert checked.returncode == 1
    assert "is not current; run: scripts/draw-architecture" in checked.stderr


def test_boxes_stand_on_what_they_import(package: Path) -> None:
    drawn = run("--print", "--package", package)
    assert drawn.returncode == 0, drawn.stderr
    lines = [line.strip("│┌─┐└┘ ") for line in drawn.stdout.splitlines()]
    assert list(filter(None, lines)) == [
        "hall/",
        "hall, 2 modules",
        "→ cellar 2  hall/upstairs 1",
        "hall/upstairs, 1 module",
        "→ cellar 1",
        "cellar, 2 modules",
        "→ house 2",
        "house, 1 module",
    ]
    assert len({len(line) for line in drawn.stdout.splitlines()}) == 1


def test_packages_on_one_floor_stand_side_by_side(package: Path) -> None:
    (package / "attic").mkdir()
    (package / "attic/box.py").write_text("from house.cellar import wine\n")
    drawn = run("--print", "--package", package).stdout
    assert any("attic, 1 module" in line and "hall/" in line for line in drawn.splitlines())


def test_a_circle_of_packages_is_an_error(package: Path) -> None:
    with (package / "cellar/rack.py").open("a") as module:
        module.write("from house.hall import guests\n")
    drawn = run("--print", "--package", package)
    assert drawn.returncode == 1
    assert "imports go in a circle: cellar -> hall -> cellar" in drawn.stderr


def test_numbers(package: Path) -> None:
    lines = run("--numbers", "--package", package).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["package", "modules", "lines", "longest", "floors", "between", "out", "to", "in", "from"],
        ["(house)", "1", "0", "0", "1", "0", "0", "2"],
        ["cellar", "2", "4", "2", "2", "1", "2", "3"],
        ["hall", "2", "3", "2", "1", "0", "3", "0"],
        ["hall/*", "3", "5", "2", "2", "1", "3", "0"],
        ["hall/upstairs", "1", "2", "2", "1", "0", "1", "1"],
        ["all", "6", "9", "2", "4", "7"],
    ]
