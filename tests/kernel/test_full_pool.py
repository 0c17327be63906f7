"""A pool that fills up while a commit is under way: it can be extended, whatever becomes of the commit."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmthin.store.store import Store
from dmthin.units import MIB
from enginelib.waiting import PATIENCE, until
from tests.support.stores import fill

_NO_SPACE_TIMEOUT = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")
_WRITE_BACK = {"dirty_ratio": "90", "dirty_background_ratio": "80", "dirty_writeback_centisecs": "60000"}


@pytest.fixture
def lazy_write_back() -> Iterator[None]:
    """What is written stays in the page cache until somebody asks for it on disk."""
    knobs = {Path("/proc/sys/vm") / name: value for name, value in _WRITE_BACK.items()}
    before = {knob: knob.read_text() for knob in (*knobs, _NO_SPACE_TIMEOUT)}
    for knob, value in knobs.items():
        knob.write_text(value)
    yield
    for knob, value in before.items():
        knob.write_text(value)


@pytest.mark.usefixtures("lazy_write_back")
@pytest.mark.parametrize("seconds", [1, 0])
def test_a_pool_that_fills_up_under_a_commit_can_be_extended(
    make_store: Callable[..., Store], tree: Path, seconds: int
) -> None:
    """`seconds` is when the kernel fails what waits for space, 0 for never: then only the extension can end it."""
    _NO_SPACE_TIMEOUT.write_text(str(seconds))
    store = make_store("dm.loopdatasize=128M", "dm.loopmetadatasize=16M", "dm.basesize=64M", "dm.min_free_space=0%")
    store.images.import_("image", tree)
    store.containers.create("image", "web", size=600 * MIB)
    fill(store.containers.mount("web") / "big", 150 * MIB)
    store.close()
    commit = dmthin(store, "container", "commit", "web", "snap")
    _await_full(store)
    extend = dmthin(store, "pool", "extend", "--data-size", "1G")
    words = extend.communicate(timeout=PATIENCE)[0]
    ended = commit.communicate(timeout=PATIENCE)[0]
    assert extend.returncode == 0, words
    with Store(store.layout.root) as now:
        if commit.returncode == 0:
            assert now.ledger.ready("snap").size == 600 * MIB
        else:
            assert re.fullmatch(r"dmthin: .+\n", ended), ended
            assert now.ledger.find("snap") is None
        assert seconds == 1 or commit.returncode == 0, ended
        now.containers.create("image", "after")
        now.images.commit("after", "later")


@pytest.mark.usefixtures("lazy_write_back")
def test_a_commit_killed_on_a_full_pool_holds_nobody_up(make_store: Callable[..., Store], tree: Path) -> None:
    _NO_SPACE_TIMEOUT.write_text("0")  # never: only the extension can end what waits for space
    store = make_store("dm.loopdatasize=128M", "dm.loopmetadatasize=16M", "dm.basesize=64M", "dm.min_free_space=0%")
    store.images.import_("image", tree)
    store.containers.create("image", "web", size=600 * MIB)
    fill(store.containers.mount("web") / "big", 150 * MIB)
    store.close()
    commit = dmthin(store, "container", "commit", "web", "snap")
    _await_full(store)
    commit.kill()
    extend = dmthin(store, "pool", "extend", "--data-size", "1G")
    words = extend.communicate(timeout=PATIENCE)[0]
    commit.communicate(timeout=PATIENCE)
    assert extend.returncode == 0, words


def dmthin(store: Store, *arguments: str) -> subprocess.Popen[str]:
    """The program, started on a store."""
    return subprocess.Popen(
        [sys.executable, "-m", "dmthin", "--root", str(store.layout.root), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _await_full(store: Store) -> None:
    with Store(store.layout.root) as now:
        until(lambda: now.pool.status().mode == "out_of_data_space")
