"""The unit files that `dmthin system install` writes, under systemd as the first process of a machine.

The steps are those of `boots`, in a guest that is booted twice with one disk.
"""

import json
import os
import re
from pathlib import Path

from tests.engine.systemd.machine import Machine

_CELLS = "cells.json"
_STOPPED = re.compile(r"Stopped ((?:dmthin-)?(?:docker|containerd))\.")  # systemd shortens what comes behind it


def test_units(system: str, tmp_path: Path) -> None:
    machine = Machine(system, tmp_path)
    cells: dict[str, dict[str, str]] = {}
    first, second = (_booted(machine, name, cells) for name in ("first", "second"))
    if out := os.environ.get("DMTHIN_TEST_OUT"):  # where scripts/test gathers what stands in docs/engines.md
        Path(out, "systemd.json").write_text(json.dumps(cells))
    assert {cell for row in cells.values() for cell in row.values()} == {"yes"}
    stopped = [found[1] for line in first if (found := _STOPPED.search(line))]
    ours = [unit for unit in stopped if unit.startswith("dmthin-")]
    assert ours
    for unit in ours:
        assert stopped.index(unit.removeprefix("dmthin-")) < stopped.index(unit)
    # Nothing of a store has kept systemd from unmounting its file system. bookworm's (252) leaves it to the journal in
    # this guest, whose /etc lies there too; why is not known.
    if system != "bookworm":
        assert [line for line in second if "EXT4-fs" in line and "recovery" in line] == []


def _booted(machine: Machine, name: str, cells: dict[str, dict[str, str]]) -> list[str]:
    """Do what `boots` has of that name; what the console has, and in `cells` what came of each step."""
    console = machine.run("tests.engine.systemd.boots", name, _CELLS)
    cells |= json.loads((machine.folder / _CELLS).read_text())
    return console
