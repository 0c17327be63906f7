"""Growth of volumes: as far as their file systems can, in steps, and taken back where it fails or is interrupted."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue, ToolFailed
from dmthin.kernel import block, mount, process
from dmthin.store.state.model import State
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from enginelib.waiting import until
from tests.support.command import COMMAND, picture

SMALL_GROUPS = ("dm.basesize=64M", "dm.mkfsarg=-b", "dm.mkfsarg=1024", "dm.mkfsarg=-g", "dm.mkfsarg=1024")
"""Blocks of 1K in groups of 1M: such an ext4 grows to 16368M, 1G in each step."""

LIMIT = 16368 * MIB


@pytest.fixture
def small_groups(make_store: Callable[..., Store], tree: Path) -> Store:
    store = make_store(*SMALL_GROUPS)
    store.images.import_("image", tree)
    store.containers.create("image", "web")
    return store


def size_at(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_blocks * status.f_frsize


def check(store: Store, name: str) -> None:
    """Run e2fsck on a container that is not mounted."""
    with store.volumes.open(store.containers.get(name)) as device:
        subprocess.run(["e2fsck", "-fn", device.info.node], check=True, capture_output=True)


def test_a_size_that_ext4_cannot_reach_changes_nothing(small_groups: Store) -> None:
    store = small_groups
    for prepare in (lambda: None, lambda: store.containers.mount("web"), lambda: store.containers.unmount("web")):
        prepare()
        before = picture(store)
        with pytest.raises(InvalidValue, match="too large for this ext4: with its blocks of 1K it grows to at most"):
            store.containers.resize("web", LIMIT + 4096)
        assert picture(store) == before
    volumes = store.ledger.volumes()
    with pytest.raises(InvalidValue, match="too large for this ext4"):
        store.containers.create("image", "other", size=LIMIT + 4096)
    assert store.ledger.volumes() == volumes
    assert store.containers.resize("web", 128 * MIB).size == 128 * MIB
    check(store, "web")


def test_the_largest_size_is_reached_in_steps(small_groups: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "dmthin")
    place = small_groups.containers.mount("web")
    assert small_groups.containers.resize("web", LIMIT).size == LIMIT
    assert size_at(place) > 14 * GIB  # without the descriptors and bitmaps of the many groups
    assert sum(message.startswith("run: resize2fs ") for message in caplog.messages) == 16
    small_groups.containers.unmount("web")
    check(small_groups, "web")


def test_xfs_grows_in_steps_too(make_store: Callable[..., Store], tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store("dm.fs=xfs", "dm.basesize=320M")
    store.images.import_("image", tree)
    store.containers.create("image", "web")
    place = store.containers.mount("web")
    caplog.set_level("DEBUG", "dmthin")
    store.containers.resize("web", 200 * GIB)
    assert 199 * GIB < size_at(place) < 200 * GIB
    assert sum(message.startswith("run: xfs_growfs ") for message in caplog.messages) == 3
    assert (place / "etc/motd").read_text() == "hello\n"


@pytest.mark.parametrize("mounted", [False, True])
def test_a_growth_that_fails_is_taken_back(
    small_groups: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch, mounted: bool
) -> None:
    store = small_groups
    if mounted:
        store.containers.mount("web")
    before = store.ledger.volumes()
    program = scratch / "bin/resize2fs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no luck >&2\nexit 1\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(process, "SEARCH_PATH", f"{program.parent}:{process.SEARCH_PATH}")
        with pytest.raises(ToolFailed, match="no luck"):
            store.containers.resize("web", 256 * MIB)
    assert store.ledger.volumes() == before
    if info := store.volumes.info(store.containers.get("web")):
        assert block.size(Path(info.node)) == 64 * MIB
    assert store.containers.resize("web", 256 * MIB).size == 256 * MIB


def test_an_interrupted_growth_keeps_what_is_reached(small_groups: Store) -> None:
    store, place = small_groups, small_groups.containers.mount("web")
    line = [*COMMAND, "--root", str(store.layout.root), "container", "resize", "web", "15G"]
    running = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    until(lambda: size_at(place) > 900 * MIB)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert (running.returncode, said.startswith("dmthin: interrupted: ")) == (130, True)
    now = store.containers.get("web")
    assert now.state is State.READY
    assert size_at(place) < now.size < 15 * GIB
    assert (now.size - 64 * MIB) % GIB == 0
    info = store.volumes.info(now)
    assert info is not None
    assert block.size(Path(info.node)) == now.size
    assert [Path(entry.target) for entry in mount.of_device(info.dev)] == [place]
    store.containers.unmount("web")
    check(store, "web")
    assert store.containers.resize("web", 16 * GIB - 64 * MIB).size == 16 * GIB - 64 * MIB
    check(store, "web")
