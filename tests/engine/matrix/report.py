"""What a run of the matrix leaves for docs/engines.md: a row for each test, a column for each engine."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from enginelib.daemons import SYSTEM
from tests.engine.matrix.containerds import version_of

FILE = "matrix.json"
_PROGRAMS = {
    "kernel": ("uname", "-r"),
    "Python": ("python", "--version"),
    "runc": ("runc", "--version"),
    "thin-provisioning-tools": ("thin_check", "--version"),
    "dmsetup": ("dmsetup", "--version"),
    "e2fsprogs": ("mkfs.ext4", "-V"),
    "xfsprogs": ("mkfs.xfs", "-V"),
    "udev": ("udevadm", "--version"),
}


class Report:
    """A pytest plugin: gathers how each test of the contract ended, and what it found worth a word."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._cells: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        row, column = said.get("row"), said.get("column")
        if not isinstance(row, str) or not isinstance(column, str):
            return
        if report.failed:
            self._cells[row][column] = "failed"
        elif report.when == "call":
            self._cells[row][column] = str(said.get("finding", "yes"))

    def pytest_sessionfinish(self) -> None:
        versions = {name: version_of(*line) for name, line in _PROGRAMS.items()}
        document = {"system": SYSTEM or "bookworm", "versions": versions, "cells": self._cells}
        self._file.write_text(json.dumps(document))
