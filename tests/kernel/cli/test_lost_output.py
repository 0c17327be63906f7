"""Verbs whose output cannot be written: the change is made, the one line of the error names it, the status is 13."""

import errno
import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from dmthin.cli import main
from dmthin.units import MIB
from tests.support.command import SMALL_OPTIONS, Command, Ran


class _Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lost(command: Command, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    capsys.readouterr()
    with redirect_stdout(_Full()):
        status = main(["--root", str(command.root), *words])
    return Ran(status, *capsys.readouterr())


def test_a_change_whose_output_is_lost_is_named(fresh: Command, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = ", but the output could not be written: No space left on device: the change is in effect\n"
    fresh.ok("pool", "create", *SMALL_OPTIONS)
    fresh.ok("image", "import", "image", str(tree))
    said = _lost(fresh, capsys, "container", "create", "image", "web")
    assert said == Ran(13, "", f"dmthin: created web: 256M, a snapshot of image{lost}")
    place = fresh.root / "mnt/web"
    said = _lost(fresh, capsys, "container", "mount", "web")
    assert said == Ran(13, "", f"dmthin: mounted web at {place}{lost}")
    assert (place / "etc/motd").read_text() == "hello\n"
    for words in (
        ["ls"],
        ["tree"],
        ["du"],
        ["inspect", "web"],
        ["pool", "status"],
        ["container", "commit", "web", "new", "--dry-run"],
    ):
        said = _lost(fresh, capsys, *words)
        assert said == Ran(13, "", "dmthin: the output could not be written: No space left on device\n")


def test_the_documents_of_changes_too(fresh: Command, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, change in (
        (["pool", "create", *SMALL_OPTIONS], f"created store {fresh.root}"),
        (["image", "import", "image", str(tree)], "imported image"),
        (["container", "create", "image", "web"], "created web"),
        (["container", "resize", "web", "300M"], "resized web: 256M -> 300M"),
        (["container", "mount", "web"], "mounted web at"),
        (["container", "commit", "web", "other"], "committed web as image other"),
        (["container", "unmount", "web"], "unmounted web"),
        (["container", "rm", "web"], "removed container web"),
        (["image", "rm", "other"], "removed image other"),
        (["pool", "extend", "--data-size", "+1G"], "extended the pool"),
        (["pool", "trim"], "reclaimed"),
        (["pool", "deactivate"], "deactivated the pool"),
        (["pool", "activate"], "activated the pool"),
        (["pool", "destroy", "--yes"], f"destroyed store {fresh.root}"),
    ):
        ran = _lost(fresh, capsys, "--json", *words)
        error = json.loads(ran.err)["error"]
        assert (ran.status, ran.out, error["exit_code"]) == (13, "", 13)
        assert error["message"].startswith(change), error
        if words[:2] == ["container", "resize"]:
            assert fresh.ok("ls", "-Hp", "-o", "name,size").out.splitlines().count(f"web\t{300 * MIB}") == 1
    assert not fresh.root.exists()
