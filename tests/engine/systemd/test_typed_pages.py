"""The commands that the documents show, typed one after the other on a machine that is as they say."""

from pathlib import Path

import pytest

from tests.engine.systemd.machine import CHECKOUT, Machine
from tests.support.pages import commands

PAGES = ("README.md", "docs/docker.md", "docs/containerd.md")


@pytest.mark.parametrize("page", PAGES)
def test_page(system: str, page: str, tmp_path: Path) -> None:
    if any(typed.system == system for typed in commands(CHECKOUT / page)):
        Machine(system, tmp_path).run("tests.engine.systemd.typed", str(CHECKOUT / page))


def test_every_page_with_commands_is_typed() -> None:
    with_commands = {path for path in [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")] if commands(path)}
    assert with_commands <= {CHECKOUT / page for page in PAGES}
