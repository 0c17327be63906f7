"""The `dmthin` command as the tests of it call it, and what is seen of a store from outside."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmthin.cli import main
from dmthin.store.store import Store
from tests.support.stores import SMALL, kernel_state

COMMAND = [str(Path(sys.executable).with_name("dmthin"))]
SMALL_OPTIONS = [word for option in SMALL for word in ("--storage-opt", option)]


@dataclass(frozen=True)
class Ran:
    """What one call of the command gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        document = json.loads(self.out)
        assert document.pop("version") == 1
        return document


class Command:
    """The command on one store, in this process: a process of its own costs half a second here."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *words: str) -> Ran:
        """Run it."""
        self._capsys.readouterr()
        status = main(["--root", str(self.root), *words])
        return Ran(status, *self._capsys.readouterr())

    def ok(self, *words: str) -> Ran:
        """Run it, and it succeeds."""
        ran = self(*words)
        assert ran.status == 0, ran.err
        return ran

    def fails(self, status: int, *words: str) -> str:
        """Run it, and it fails: with this status, nothing on standard output, one line on standard error."""
        ran = self(*words)
        assert (ran.status, ran.out) == (status, ""), ran.err
        lines = [line for line in ran.err.splitlines() if not line.startswith("usage:")]
        assert len(lines) == 1, ran.err
        assert lines[0].startswith("dmthin: ")
        return lines[0].removeprefix("dmthin: ")


def picture(store: Store) -> dict[str, object]:
    """Everything that a command that changes nothing leaves as it was."""
    tables, dm = {}, store.dm
    for device in dm.devices():
        tables[device.name] = (dm.table(device.name), dm.info(device.name).suspended)
    record, layout = store.ledger.store(), store.layout
    return {
        **kernel_state(),
        "tables": tables,
        "record": record,
        "volumes": store.ledger.volumes(),
        "transaction": store.pool.status().status and store.lifecycle.activation.pool(record).status().transaction_id,
        "sizes": [layout.data(record).size(), layout.metadata(record).size()],
        "files": sorted(path.name for path in layout.root.iterdir() if not path.name.startswith("ledger.db-")),
        "mount points": sorted(os.listdir(layout.mounts)),
    }


def paste(lines: str) -> None:
    """Run what a dry run has printed, as an administrator would."""
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(["sh", "-euc", lines], env=environment, check=True, capture_output=True, text=True)


def on_terminal(*line: str) -> str:
    """What a command prints whose output is a terminal, with its own line ends."""
    reading, writing = os.openpty()
    with open(reading, "rb", buffering=0) as ours, subprocess.Popen(line, stdout=writing, stdin=writing) as process:
        os.close(writing)
        printed = b""
        with suppress(OSError):  # EIO once the last of its writers has ended
            while piece := ours.read(1 << 16):
                printed += piece
        assert process.wait() == 0, printed
    return printed.decode().replace("\r\n", "\n")
