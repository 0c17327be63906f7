"""The command on a store, and on a place where one may be made."""

import math
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dmthin.store.state.lock_waits import limit_waits
from dmthin.store.store import Store
from dmthin.units import MIB
from tests.support.command import Command
from tests.support.stores import fill, take_down


@pytest.fixture(autouse=True)
def _no_limit_is_left() -> Iterator[None]:
    """A command's limit of waits for locks is that of its process, which here runs other tests too."""
    yield
    limit_waits(math.inf)


@pytest.fixture
def dmthin(store: Store, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command on `store`."""
    return Command(store.layout.root, capsys)


@pytest.fixture
def fresh(scratch: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command on a place where a store may be made; it is taken down afterwards."""
    command = Command(scratch / "fresh", capsys)
    yield command
    with suppress(Exception):
        take_down(Store(command.root))


@pytest.fixture
def big_tar(scratch: Path) -> Path:
    """A tar of 400M, larger than the volumes here."""
    content = scratch / "content"
    fill(content, 400 * MIB)
    with tarfile.open(scratch / "big.tar", "w") as archive:
        archive.add(content, "content")
    content.unlink()
    return scratch / "big.tar"
