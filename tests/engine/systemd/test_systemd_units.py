"""The unit files that `dmthin system install` writes, under systemd as the first process of a machine.

The steps are those of `boots`, in a guest that is booted twice with one disk.
"""

import json
import os
import re
import subprocess
from pathlib import Path

from enginelib.waiting import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[3]
_CELLS = "cells.json"
_STOPPED = re.compile(r"Stopped ((?:dmthin-)?(?:docker|containerd)\.service)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Machine:
    """A guest with systemd, whose disk keeps dmthin's stores and what is in /etc."""

    def __init__(self, system: str, folder: Path) -> None:
        self._folder = folder
        self._line = [
            *(str(CHECKOUT / "scripts/vm"), *([] if system == "bookworm" else ["--system", system]), "--systemd"),
            *("--memory", "4G", "--timeout", f"{4 * PATIENCE:g}", "--disk", str(folder / "disk.img")),
            *("--env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'scripts'}", "--out", str(folder)),
        ]
        self.cells: dict[str, dict[str, str]] = {}

    def boot(self, name: str) -> list[str]:
        """Do what `boots` has of that name, and shut down; what kernel and systemd have said on the console."""
        console = self._folder / f"{name}.log"
        job = ["--kernel-log", str(console), "--", "python", "-m", "tests.engine.systemd.boots", name, _CELLS]
        subprocess.run([*self._line, *job], stdin=subprocess.DEVNULL, check=True)
        self.cells |= json.loads((self._folder / _CELLS).read_text())
        return _COLOUR.sub("", console.read_text(errors="replace")).splitlines()


def test_units(system: str, tmp_path: Path) -> None:
    machine = Machine(system, tmp_path)
    first, second = machine.boot("first"), machine.boot("second")
    if out := os.environ.get("DMTHIN_TEST_OUT"):  # where scripts/test gathers what stands in docs/engines.md
        Path(out, "systemd.json").write_text(json.dumps(machine.cells))
    assert {cell for row in machine.cells.values() for cell in row.values()} == {"yes"}
    stopped = [found[1] for line in first if (found := _STOPPED.search(line))]
    ours = [unit for unit in stopped if unit.startswith("dmthin-")]
    assert ours
    for unit in ours:
        assert stopped.index(unit.removeprefix("dmthin-")) < stopped.index(unit)
    # Nothing of a store has kept systemd from unmounting its file system.
    assert [line for line in second if "EXT4-fs" in line and "recovery" in line] == []
