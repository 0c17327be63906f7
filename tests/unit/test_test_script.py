"""What `scripts/test` makes of its words, and how several processes of pytest share modules."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from testlib import command_line, matrix, running
from testlib.running import Lane, Step
from testlib.selection import CHECKOUT, Place, UsageError, chosen, whole_tier

MODULES = {"a": 1, "b": 30, "c": 2, "d": 20}
"""Test modules with the seconds that they took when that was recorded; another one is not known."""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tests/unit"], {Place.UNIT: ["tests/unit"]}),
        (["tests/unit/test_units.py"], {Place.UNIT: ["tests/unit/test_units.py"]}),
        (["tests/kernel/cli"], {Place.KERNEL: ["tests/kernel/cli"]}),
        (
            ["tests/kernel/test_loop.py::test_detach_twice", "tests/unit/test_units.py"],
            {
                Place.UNIT: ["tests/unit/test_units.py"],
                Place.KERNEL: ["tests/kernel/test_loop.py::test_detach_twice"],
            },
        ),
        (
            ["tests/engine/test_vm.py", "tests/engine/docker/test_starts.py"],
            {
                Place.ENGINE_HOST: ["tests/engine/test_vm.py"],
                Place.ENGINE_GUEST: ["tests/engine/docker/test_starts.py"],
            },
        ),
        (["tests/engine/containerd"], {Place.ENGINE_GUEST: ["tests/engine/containerd"]}),
        (["tests/engine/matrix/test_contract.py"], {Place.MATRIX: ["tests/engine/matrix/test_contract.py"]}),
        (["tests/engine/systemd"], {Place.MATRIX_HOST: ["tests/engine/systemd"]}),
        (
            ["tests"],
            {
                Place.UNIT: ["tests/unit"],
                Place.KERNEL: ["tests/kernel"],
                Place.ENGINE_HOST: ["tests/engine/test_smp.py", "tests/engine/test_vm.py"],
                Place.ENGINE_GUEST: ["tests/engine/containerd", "tests/engine/docker"],
            },
        ),
    ],
)
def test_each_test_has_its_place(words: Sequence[str], found: dict[Place, list[str]]) -> None:
    assert chosen(words, CHECKOUT).words == found


def test_a_path_may_be_below_the_current_folder() -> None:
    assert chosen(["cli"], CHECKOUT / "tests/kernel") == chosen(["tests/kernel/cli"], CHECKOUT)
    assert chosen(["test_units.py"], CHECKOUT / "tests/unit") == chosen(["tests/unit/test_units.py"], CHECKOUT)


def test_the_tiers_hold_all_tests() -> None:
    found: list[str] = []
    for tier in ("unit", "kernel", "engine", "matrix"):
        selection = whole_tier(tier)
        found += [module for place in Place for module in selection.modules(place)]
    assert sorted(found) == sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("tests/**/test_*.py"))


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("tests/unit/test_nothing.py", "there is no tests/unit/test_nothing.py"),
        ("tests/unit/test_units.py::test_nothing", "there is no test_nothing in tests/unit/test_units.py"),
        ("tests/unit::test_nothing", "tests/unit is no module of tests"),
        ("tests/conftest.py", "tests/conftest.py holds no tests"),
        ("tests/support", "support holds no tests"),
        ("README.md", "README.md is not below"),
    ],
)
def test_what_is_no_test_is_refused(word: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=why):
        chosen([word], CHECKOUT)
    with pytest.raises(SystemExit) as ended:
        command_line.main([word])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--tier", "other"],
        ["--tier", "unit", "tests/unit"],
        ["--all", "tests/unit"],
        ["--all", "--tier", "unit"],
        ["--jobs", "0"],
        ["--system", "trixie"],
        ["--tier", "matrix", "--system", "etch"],
        ["--tier", "unit", "--write"],
        ["--tier", "matrix", "--write", "-k", "word"],
        ["tests/engine/matrix/test_contract.py", "--write"],
        ["--record-durations", "-k", "word"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2
    assert "scripts/test: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "arguments", "paths"),
    [
        (["--tier", "kernel", "-k", "resize"], ["-k", "resize"], []),
        (["tests/unit", "-x", "--durations=3"], ["-x", "--durations=3"], ["tests/unit"]),
        (["-x", "tests/unit/test_units.py::test_a"], ["-x"], ["tests/unit/test_units.py::test_a"]),
        (["-k", "tests/unit", "tests/kernel"], ["-k", "tests/unit"], ["tests/kernel"]),
    ],
)
def test_the_rest_goes_to_pytest(words: list[str], arguments: list[str], paths: list[str]) -> None:
    assert command_line.parse(words)[1:] == (arguments, paths)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder of test modules that note what is run, in its order, by which process."""
    durations = tmp_path / "durations.json"
    durations.write_text(json.dumps({f"test_{name}.py": seconds for name, seconds in MODULES.items()}))
    (tmp_path / "conftest.py").write_text(f"""
import os, pathlib, sys
import pytest
sys.path.insert(0, {str(CHECKOUT)!r})
from tests.support import queue
queue.DURATIONS = pathlib.Path({str(durations)!r})
def pytest_configure(config):
    config.pluginmanager.register(queue.SharedQueue(pathlib.Path(os.environ["DMTHIN_TEST_QUEUE"])))
@pytest.fixture(autouse=True)
def note(request):
    with open({str(tmp_path / "ran")!r}, "a") as file:
        file.write(f"{{request.node.path.stem}}::{{request.node.name}}\\n")
""")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in (*MODULES, "unknown"):
        (tmp_path / f"test_{name}.py").write_text("def test_1(): pass\ndef test_2(): pass\n")
    return tmp_path


def ran(suite: Path) -> list[str]:
    return (suite / "ran").read_text().split()


def test_the_longest_modules_come_first(suite: Path) -> None:
    (suite / "queue").mkdir()
    environment = {**os.environ, "DMTHIN_TEST_QUEUE": str(suite / "queue")}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)]
    done = subprocess.run(line, cwd=suite, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    order = ("unknown", "b", "d", "c", "a")
    assert ran(suite) == [f"test_{name}::test_{number}" for name in order for number in (1, 2)]
    (measured,) = suite.glob("durations-*.json")
    assert json.loads(measured.read_text()).keys() == {f"test_{name}.py" for name in order}
    again = subprocess.run(line, cwd=suite, env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert "10 deselected" in again.stdout


def test_lanes_share_modules(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (suite / "test_d.py").write_text("def test_1(): pass\ndef test_2(): assert False\n")
    step = Step("queue", [str(suite)])
    outcome = running.run_lanes([Lane("one", [step]), Lane("other", [step])], ["-p", "no:cacheprovider"], {})
    assert sorted(ran(suite)) == sorted(f"test_{name}::test_{n}" for name in (*MODULES, "unknown") for n in (1, 2))
    assert outcome.failed in (["one"], ["other"])
    assert outcome.selected
    said = capfd.readouterr().out
    assert said.count("test session starts") == 2
    assert "=== other" in said
    assert "1 failed" in said


def test_a_lane_goes_on_after_a_step_that_failed(suite: Path) -> None:
    for module in suite.glob("test_*.py"):
        module.write_text("def test(): assert False\n")
    steps = [Step("queue", [str(suite / "test_a.py")]), Step("queue", [str(suite / "test_b.py")])]
    assert running.run_lanes([Lane("both", steps)], ["-p", "no:cacheprovider"], {}).failed == ["both"]
    assert len(ran(suite)) == 2


def test_nothing_selected_is_no_failure_of_a_lane(suite: Path) -> None:
    outcome = running.run_lanes([Lane("none", [Step("queue", [str(suite)])])], ["-k", "nothing"], {})
    assert (outcome.failed, outcome.selected) == ([], False)


def test_a_step_may_leave_files(suite: Path) -> None:
    (suite / "test_a.py").write_text(
        "import os, pathlib\ndef test():\n"
        "    pathlib.Path(os.environ['DMTHIN_TEST_QUEUE']).with_name('matrix.json').write_text('found')\n"
    )
    lane = Lane("one", [Step("trixie", [str(suite / "test_a.py")])])
    assert running.run_lanes([lane], ["-p", "no:cacheprovider"], {}).left == {("trixie", "matrix.json"): "found"}


@pytest.mark.parametrize(
    ("system", "guests"),
    [
        ("trixie", [("--system", "trixie", "--udev"), None, ("--system", "trixie")]),
        ("bookworm", [("--udev",), None]),
    ],
)
def test_each_system_boots_its_guests(system: str, guests: list[tuple[str, ...] | None]) -> None:
    steps = list(matrix.steps(system, ["tests/engine/matrix"], ["tests/engine/systemd"], ("--udev",)))
    assert [step.guest for step in steps] == guests
    folders = ["tests/engine", "tests/engine", "tests/kernel"][: len(guests)]
    assert [step.words[0].rpartition("/")[0] for step in steps] == folders
    for word in (word for step in steps for word in step.words if word.startswith("tests/")):
        assert (CHECKOUT / word).exists()


RESULTS = {
    "system": "sid",
    "versions": {"kernel": "7.2.7", "Python": "3.14.1"},
    "cells": {"run": {"dockerd 28.5.2": "yes", "containerd 2.1.9": "yes"}, "build": {"dockerd 28.5.2": "no: why"}},
}
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.kernel.test_store" name="test_a"/>
<testcase classname="tests.kernel.test_store" name="test_b[x]"><failure message="m"/></testcase>
</testsuite></testsuites>"""


def test_a_section_of_the_page_tells_what_was_run() -> None:
    text = matrix.section(RESULTS, JUNIT, "scripts/test --tier matrix --write", date(2026, 12, 1))
    assert text.splitlines() == [
        *("### Debian unstable (sid)", ""),
        "Run on 2026-12-01 by `scripts/test --tier matrix --write`: kernel 7.2.7, Python 3.14.1.",
        *("", "| | dockerd 28.5.2 | containerd 2.1.9 |", "|---|---|---|"),
        *("| run | yes | yes |", "| build | no: why |  |", ""),
        "Of the kernel tier, on this kernel: `tests/kernel/test_store.py` 1 passed; failed: `test_b[x]`.",
    ]


def test_a_section_takes_the_place_of_the_last_one() -> None:
    page = matrix.PAGE.read_text()
    for system in matrix.SYSTEMS:
        page = matrix.replaced(matrix.replaced(page, system, f"old of {system}\n"), system, f"new of {system}\n")
    assert [line for line in page.splitlines() if line.startswith(("old", "new"))] == [
        f"new of {system}" for system in matrix.SYSTEMS
    ]
    assert page.startswith(matrix.PAGE.read_text().partition("<!--")[0])
    with pytest.raises(ValueError, match="has no place for sid"):
        matrix.replaced("# A page\n", "sid", "part\n")
