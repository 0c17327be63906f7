"""Frozen snapshots: what a snapshot contained at one moment, read while it is written on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmthin.errors import NoDataSpace
from dmthin.kernel import mount
from dmthin.store.create import create_store
from dmthin.store.state.model import FROZEN_NAMES, Snapshot, State, Volume
from dmthin.store.store import Store
from dmthin.store.volumes import cleanup
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import MIB
from tests.support.processes import child
from tests.support.stores import check_store, fill, scratch_folder, take_down

NAME = "dmthin"


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    options = ("dm.loopdatasize=2G", "dm.loopmetadatasize=64M", "dm.basesize=320M", f"dm.fs={request.param}")
    with scratch_folder() as folder:
        store = create_store(folder / "store", options)
        yield store
        check_store(store)
        take_down(store)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@contextmanager
def written(store: Store, place: Path) -> Iterator[Snapshot]:
    """An active snapshot, mounted to be written, with a file in it."""
    snapshot, device = store.snapshots.prepare(NAME, "web", "", {})
    mount.mount(device.node, place, snapshot.volume.file_system)
    try:
        (place / "kept").write_text("before")
        (place / "gone").write_text("before")
        yield snapshot
    finally:
        mount.unmount(place)
        store.snapshots.remove(NAME, "web")


@contextmanager
def filesystem_at(node: str, place: Path, kind: str) -> Iterator[Path]:
    """A device's file system, mounted at a new folder."""
    place.mkdir()
    mount.mount(node, place, kind)
    try:
        yield place
    finally:
        mount.unmount(place)


def frozen_volumes(store: Store) -> list[Volume]:
    return [volume for volume in store.ledger.volumes() if volume.name.startswith(FROZEN_NAMES)]


def content(root: int) -> dict[str, str]:
    def read(name: str) -> str:
        with open(name, opener=lambda path, flags: os.open(path, flags, dir_fd=root)) as file:
            return file.read()

    fd = os.open(".", os.O_RDONLY, dir_fd=root)
    try:
        return {name: read(name) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def test_what_is_written_afterwards_is_not_in_it(store: Store, place: Path) -> None:
    with written(store, place) as snapshot:
        with store.snapshots.frozen(snapshot) as root:
            (place / "gone").unlink()
            (place / "kept").write_text("after")
            (place / "new").write_text("after")
            assert content(root) == {"kept": "before", "gone": "before"}
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("x", dir_fd=root)
            (volume,) = frozen_volumes(store)
            assert (volume.state, volume.parent) == (State.MAKING, snapshot.volume.device_id)
            assert store.ledger.children(snapshot.volume.device_id) == []
        assert frozen_volumes(store) == []
        with store.snapshots.frozen(snapshot) as root:
            assert content(root) == {"kept": "after", "new": "after"}


def test_a_view_needs_none(store: Store) -> None:
    view, _ = store.snapshots.prepare(NAME, "view", "", {}, view=True)
    with store.snapshots.frozen(view) as root:
        assert content(root) == {}
        assert frozen_volumes(store) == []
    store.snapshots.remove(NAME, "view")


def test_a_snapshot_is_removed_while_its_frozen_state_is_read(store: Store, place: Path) -> None:
    with written(store, place) as snapshot:
        frozen = store.snapshots.frozen(snapshot)
        root = frozen.__enter__()
    assert store.ledger.by_id(snapshot.volume.device_id) is None
    assert content(root) == {"kept": "before", "gone": "before"}
    frozen.__exit__(None, None, None)
    assert frozen_volumes(store) == []


def test_recovery_removes_what_a_dead_process_has_left(store: Store, place: Path) -> None:
    with written(store, place) as snapshot:
        reading, writing = os.pipe()

        def freeze() -> None:
            with Store(store.layout.root) as other, other.snapshots.frozen(snapshot):
                os.write(writing, b"x")
                signal.pause()

        with child(freeze):
            os.close(writing)
            assert os.read(reading, 1) == b"x"
            (volume,) = frozen_volumes(store)
            store.recover()
            assert frozen_volumes(store) == [volume]
        os.close(reading)
        store.recover()
        assert frozen_volumes(store) == []
        assert store.volumes.info(volume) is None


def test_which_snapshot_a_device_is_of(store: Store, place: Path) -> None:
    with written(store, place) as snapshot:
        info = store.volumes.info(snapshot.volume)
        assert info is not None
        found = store.snapshots.at(Path(info.node))
        assert found is not None
        assert (found.snapshotter, found.key) == (NAME, "web")
        assert store.snapshots.at(Path("/dev/mapper") / info.name) in (found, None)
        backing = next(Path("/dev").glob("loop[0-9]*"))
        for other in (Path("/dev/null"), Path("/dev/dm-4000"), place, backing):
            assert store.snapshots.at(other) is None
    assert store.snapshots.at(Path(info.node)) is None


def test_a_queued_removal_makes_room_for_it(
    make_store: Callable[..., Store], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal would wait for an hour: only a pool that is short of space has it done at once."""
    monkeypatch.setattr(cleanup, "_REMOVAL_SECONDS", 3600)
    small = make_store("dm.loopdatasize=256M", "dm.loopmetadatasize=16M", "dm.basesize=64M")
    queue = BackgroundQueue("test")
    with Store(small.layout.root, background=Background(queue)) as store, written(store, place) as snapshot:
        large, device = store.snapshots.prepare(NAME, "large", "", {}, size=512 * MIB)
        with filesystem_at(device.node, tmp_path / "large", large.volume.file_system) as root:
            report = store.pool.status()
            fill(root / "big", report.data_size - report.data_used - 20 * MIB)
            os.sync()
        with pytest.raises(NoDataSpace), store.snapshots.frozen(snapshot):
            pass
        store.snapshots.remove(NAME, "large")
        with store.snapshots.frozen(snapshot) as root_fd:
            assert content(root_fd)["kept"] == "before"
    queue.close()
