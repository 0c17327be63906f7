"""Spares: snapshots made ahead of images that are used again and again, and taken for what would have been made."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmthin import steps
from dmthin.errors import AlreadyExists, NoDataSpace, NotFound
from dmthin.kernel import mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.store.pool import PoolReport
from dmthin.store.state.model import SPARE_NAMES, Kind, NewVolume, State, Volume
from dmthin.store.store import Store
from dmthin.store.volumes import spares
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.store.volumes.creation import Unfinished
from dmthin.units import MIB
from tests.support import processes
from tests.support.stores import fill
from tests.support.threads import in_threads

NAME = "s"


@pytest.fixture
def options() -> tuple[str, ...]:
    """Storage options of the store."""
    return ()


@pytest.fixture
def queue() -> BackgroundQueue:
    """The queue in which the daemon whose store this is makes spares."""
    return BackgroundQueue("test")


@pytest.fixture
def store(make_store: Callable[..., Store], options: tuple[str, ...], queue: BackgroundQueue) -> Iterator[Store]:
    store = make_store(*options, background=Background(spares=queue))
    yield store
    store.spares.close()
    queue.close()


@pytest.fixture
def spare(store: Store, queue: BackgroundQueue, place: Path) -> Volume:
    """The spare of the image `image`."""
    make_image(store, place, "image")
    return ask_twice(store, queue, "image")


def make_image(store: Store, place: Path, name: str) -> None:
    """A committed snapshot with one file, which holds its name."""
    _, info = store.snapshots.prepare(NAME, f"{name}-key", "", {})
    with mounted(info, place) as root:
        (root / "file").write_text(name)
    store.snapshots.commit(NAME, name, f"{name}-key", {})


def ask_twice(store: Store, queue: BackgroundQueue, image: str) -> Volume:
    """Make two snapshots of an image, and with them its spare."""
    for number in (1, 2):
        assert not found(store, image)
        store.snapshots.prepare(NAME, f"{image}-{number}", image, {})
    queue.drain()
    (spare,) = found(store, image)
    return spare


def found(store: Store, image: str) -> list[Volume]:
    """The spares of an image that the ledger has."""
    parent = store.snapshots.get(NAME, image).volume.device_id
    return [volume for volume in all_spares(store) if volume.parent == parent]


def all_spares(store: Store) -> list[Volume]:
    return [volume for volume in store.ledger.volumes() if volume.name.startswith(SPARE_NAMES)]


def allocated(report: PoolReport) -> int:
    """What the pool's data file takes of the host."""
    assert report.data_allocated is not None
    return report.data_allocated


@contextmanager
def mounted(info: DeviceInfo, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    mount.mount(info.node, place, "ext4")
    try:
        yield place
    finally:
        mount.unmount(place)


def test_the_next_snapshot_is_the_spare_and_costs_one_step(store: Store, spare: Volume, place: Path) -> None:
    edges: list[str] = []
    steps.arm(0, edges.append)
    try:
        snapshot, info = store.snapshots.prepare(NAME, "third", "image", {"k": "v"})
    finally:
        steps.arm(0)
    assert snapshot.volume.device_id == spare.device_id
    assert {edge for edge in edges if "dm " in edge} == set()
    assert len({edge.removeprefix("before ").removeprefix("after ") for edge in edges}) == 1, edges
    assert store.snapshots.get(NAME, "third") == snapshot
    assert snapshot.volume == store.ledger.by_id(spare.device_id)
    assert snapshot.labels == {"k": "v"}
    with mounted(info, place) as root:
        assert (root / "file").read_text() == "image"
        (root / "file").write_text("changed")
    with mounted(store.snapshots.prepare(NAME, "fourth", "image", {})[1], place) as root:
        assert (root / "file").read_text() == "image"


def test_there_is_a_new_one_for_the_next(store: Store, queue: BackgroundQueue, spare: Volume) -> None:
    for key in ("third", "fourth"):
        taken = store.snapshots.prepare(NAME, key, "image", {})[0].volume
        queue.drain()
        (next_one,) = found(store, "image")
        assert next_one.device_id > taken.device_id


def test_a_spare_is_nobodys_child_and_goes_with_its_image(store: Store, spare: Volume) -> None:
    for key in ("image-1", "image-2", "image"):
        store.snapshots.remove(NAME, key)
    assert not all_spares(store)
    assert store.snapshots.all(NAME) == []
    with pytest.raises(NotFound):
        store.snapshots.prepare(NAME, "third", "image", {})


def test_what_a_spare_shares_with_its_image_comes_back(store: Store, queue: BackgroundQueue, place: Path) -> None:
    _, info = store.snapshots.prepare(NAME, "key", "", {})
    with mounted(info, place) as root:
        fill(root / "file", 64 * MIB)
    store.snapshots.commit(NAME, "image", "key", {})
    ask_twice(store, queue, "image")
    before = store.pool.status()
    for key in ("image-1", "image-2", "image"):
        store.snapshots.remove(NAME, key)
    after = store.pool.status()
    assert after.data_used <= before.data_used - 64 * MIB
    assert allocated(after) <= allocated(before) - 64 * MIB


def test_each_of_many_at_once_gets_its_own(store: Store, queue: BackgroundQueue, spare: Volume) -> None:
    made = []

    def make(number: int) -> None:
        snapshot, _ = store.snapshots.prepare(NAME, f"many-{number}", "image", {})
        made.append(snapshot.volume.device_id)

    in_threads(8, make)
    assert len(set(made)) == 8
    assert spare.device_id in made
    queue.drain()
    assert len(found(store, "image")) == 1


def test_a_taken_key_leaves_the_spare_where_it_is(store: Store, spare: Volume) -> None:
    with pytest.raises(AlreadyExists):
        store.snapshots.prepare(NAME, "image-1", "image", {})
    assert found(store, "image") == [spare]


def test_a_key_that_is_taken_meanwhile_is_refused(store: Store, spare: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two callers with one key: the later one finds that out in its last step only."""
    prepare = store.snapshots._table.find_both

    def nobody_yet(snapshotter: str, key: str, parent: str) -> object:
        _, below = prepare(snapshotter, key, parent)
        return None, below

    monkeypatch.setattr(store.snapshots._table, "find_both", nobody_yet)
    with pytest.raises(AlreadyExists):
        store.snapshots.prepare(NAME, "image-1", "image", {})
    assert not all_spares(store)
    with pytest.raises(NotFound):
        store.dm.info(store.ledger.store().device_name(spare.device_id))


@pytest.mark.parametrize("options", [("dm.min_free_space=99%",)])
def test_a_pool_without_room_refuses_although_there_is_a_spare(store: Store, spare: Volume, place: Path) -> None:
    with mounted(store.snapshots.activate(store.snapshots.get(NAME, "image-1")), place) as root:
        fill(root / "file", 64 * MIB)
    with pytest.raises(NoDataSpace):
        store.snapshots.prepare(NAME, "third", "image", {})
    assert not all_spares(store)


def test_a_spare_whose_device_has_gone_gets_it_again(store: Store, spare: Volume, place: Path) -> None:
    with Store(store.layout.root) as other:
        other.pool.deactivate()
    snapshot, info = store.snapshots.prepare(NAME, "third", "image", {})
    assert snapshot.volume.device_id == spare.device_id
    with mounted(info, place) as root:
        assert (root / "file").read_text() == "image"


def test_an_image_in_use_gets_no_spare(store: Store, queue: BackgroundQueue, place: Path) -> None:
    """It was committed while it was mounted: what is written still belongs into the next snapshot."""
    make_image(store, place, "image")
    with mounted(store.snapshots.activate(store.snapshots.get(NAME, "image")), place):
        for number in (1, 2, 3):
            store.snapshots.prepare(NAME, f"image-{number}", "image", {})
        queue.drain()
        assert not all_spares(store)


def test_those_of_another_size_and_views_are_made(store: Store, spare: Volume) -> None:
    larger, _ = store.snapshots.prepare(NAME, "larger", "image", {}, size=spare.size + 64 * MIB)
    view, _ = store.snapshots.prepare(NAME, "view", "image", {}, view=True)
    assert spare.device_id not in (larger.volume.device_id, view.volume.device_id)
    assert found(store, "image") == [spare]


def test_there_are_no_more_than_so_many(
    store: Store, queue: BackgroundQueue, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that was given one the longest ago has to do without."""
    monkeypatch.setattr(spares, "_MOST", 2)
    for image in ("one", "two", "three"):
        make_image(store, place, image)
        ask_twice(store, queue, image)
    assert not found(store, "one")
    assert found(store, "two")
    assert found(store, "three")


def test_a_spare_that_another_one_replaces_is_removed(store: Store, spare: Volume) -> None:
    parent = store.snapshots.get(NAME, "image").volume
    new = NewVolume(f"{SPARE_NAMES}another", Kind.CONTAINER, parent.size, parent.file_system, parent)
    (replaced,) = store.spares._keep(spares.Spare(parent, store.volumes.creation.begin(new, activate=True)))
    assert replaced.unfinished.volume == spare
    store.volumes.creation.roll_back(replaced.unfinished)
    assert [volume.name for volume in found(store, "image")] == [new.name]


def test_other_processes_leave_a_spare_alone(store: Store, spare: Volume) -> None:
    with Store(store.layout.root) as other:
        for key in ("fourth", "fifth"):
            other.snapshots.prepare(NAME, key, "image", {})
        assert found(store, "image") == [spare]
        assert other.ledger.by_id(spare.device_id) == spare
    assert store.snapshots.prepare(NAME, "third", "image", {})[0].volume.device_id == spare.device_id


def test_an_end_leaves_none(store: Store, queue: BackgroundQueue, spare: Volume) -> None:
    store.snapshots.prepare(NAME, "third", "image", {})  # the next one is on its way
    store.spares.close()
    queue.drain()
    assert not all_spares(store)
    assert {volume.state for volume in store.ledger.volumes()} == {State.READY}
    assert store.snapshots.prepare(NAME, "fourth", "image", {})


def test_an_end_in_the_middle_of_making_one_leaves_none(
    store: Store, queue: BackgroundQueue, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(store, place, "image")
    begin = store.volumes.creation.begin

    def closing(new: NewVolume, *, activate: bool = False) -> Unfinished:
        store.spares.close()
        return begin(new, activate=activate)

    for key in ("first", "second"):
        store.snapshots.prepare(NAME, key, "image", {})
    monkeypatch.setattr(store.volumes.creation, "begin", closing)
    queue.drain()
    assert not all_spares(store)


def test_an_end_does_not_bring_a_pool_up_that_was_taken_down(
    store: Store, queue: BackgroundQueue, spare: Volume
) -> None:
    """An administrator may be at its metadata with thin_check."""
    with Store(store.layout.root) as other:
        other.pool.deactivate()
    store.spares.close()
    assert not store.pool.status().active
    assert all_spares(store) == [spare]
    store.pool.activate()
    assert not all_spares(store)


def test_no_pool_is_brought_up_for_a_spare(store: Store, queue: BackgroundQueue, place: Path) -> None:
    make_image(store, place, "image")
    for key in ("first", "second"):
        store.snapshots.prepare(NAME, key, "image", {})
    with Store(store.layout.root) as other:
        other.pool.deactivate()
    queue.drain()
    assert not store.pool.status().active
    assert not all_spares(store)


def test_an_image_that_another_process_removes_leaves_no_blocks(
    store: Store, queue: BackgroundQueue, place: Path
) -> None:
    """The daemon hears of it in containerd's next Cleanup."""
    make_image(store, place, "image")
    with mounted(store.snapshots.activate(store.snapshots.get(NAME, "image")), place) as root:
        fill(root / "more", 64 * MIB)
    store.volumes.deactivate(store.snapshots.get(NAME, "image").volume)
    ask_twice(store, queue, "image")
    before = store.pool.status()
    with Store(store.layout.root) as other:
        for key in ("image-1", "image-2", "image"):
            other.snapshots.remove(NAME, key)
        assert all_spares(other)
    store.spares.drop_orphans()
    assert not all_spares(store)
    after = store.pool.status()
    assert after.data_used <= before.data_used - 64 * MIB
    assert allocated(after) <= allocated(before) - 64 * MIB


def test_a_process_that_dies_while_an_image_goes_leaves_no_blocks(store: Store, place: Path) -> None:
    """Its spare is removed before the image's blocks are given back: they are the image's alone by then."""
    _, info = store.snapshots.prepare(NAME, "key", "", {})
    with mounted(info, place) as root:
        fill(root / "file", 64 * MIB)
    store.snapshots.commit(NAME, "image", "key", {})
    before = store.pool.status()

    def remove_all_and_die() -> None:
        queue = BackgroundQueue("own")
        with Store(store.layout.root, background=Background(queue, queue)) as own:
            for key in ("first", "second"):
                own.snapshots.prepare(NAME, key, "image", {})
            queue.drain()
            for key in ("first", "second", "image"):
                own.snapshots.remove(NAME, key)
            os.kill(os.getpid(), signal.SIGKILL)

    assert processes.run(remove_all_and_die) == -signal.SIGKILL
    assert all_spares(store)
    store.pool.activate()
    assert not all_spares(store)
    after = store.pool.status()
    assert allocated(after) <= allocated(before) - 64 * MIB


def test_unmounting_everything_does_not_wait_for_a_spare(store: Store, spare: Volume) -> None:
    with Store(store.layout.root) as other:
        other.layers.unmount_all()
    assert all_spares(store) == [spare]


def test_a_removal_that_is_under_way_ends_before_a_spare_is_made(
    store: Store, queue: BackgroundQueue, place: Path
) -> None:
    make_image(store, place, "image")
    for key in ("first", "second"):
        store.snapshots.prepare(NAME, key, "image", {})
    for key in ("first", "second"):
        store.snapshots.remove(NAME, key)
    removing = BackgroundQueue("removing")
    with Store(store.layout.root, background=Background(removing)) as other:
        try:
            other.snapshots.remove(NAME, "image")  # keeps its lock for a moment
            queue.drain()
            assert not all_spares(store)
        finally:
            removing.close()


def test_an_image_that_was_removed_meanwhile_gets_none(store: Store, queue: BackgroundQueue, place: Path) -> None:
    make_image(store, place, "image")
    for number in (1, 2):
        store.snapshots.prepare(NAME, f"image-{number}", "image", {})
    for key in ("image-1", "image-2", "image"):
        store.snapshots.remove(NAME, key)
    queue.drain()
    assert not all_spares(store)
