"""What containerd hears of pools that are full, gone or broken, and what works then; and of keys that are not there."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from enginelib.snapshots import Snapshots
from tests.support import rigs, thintools
from tests.support.processes import program
from tests.support.rigs import Rig
from tests.support.snapshotters import Daemon, collect_garbage, layer, mounted, refused, serving
from tests.support.stores import fill, scratch_folder

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LOST = grpc.StatusCode.DATA_LOSS
MISSING = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

NAMES = ("full", "lost", "gone", "broken")


@dataclass
class Site:
    """A daemon with a snapshotter for each trouble: `full` and `lost` have files, the others pools made by hand."""

    daemon: Daemon
    folder: Path
    pools: dict[str, Rig]

    def root(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        dm = stack.enter_context(IoctlDeviceMapper())
        pools = {}
        for name in ("gone", "broken"):
            (folder / f"{name}-pool").mkdir()
            rig = rigs.pool(dm, folder / f"{name}-pool", data_size=GIB, metadata_size=16 * MIB)
            pools[name] = stack.enter_context(rig)
            create_store(folder / name, ("dm.basesize=64M", f"dm.thinpooldev={pools[name].pool.name}")).close()
        for name in ("full", "lost"):
            size = "48M" if name == "full" else "1G"
            options = ("dm.basesize=64M", f"dm.loopdatasize={size}", "dm.loopmetadatasize=16M")
            create_store(folder / name, options).close()
        roots = [folder / name for name in NAMES]
        plans = (f"{root.name}={root}" for root in roots)
        daemon = stack.enter_context(serving(folder, *plans, options=(), stores=roots))
        yield Site(daemon, folder, pools)


@pytest.fixture
def client(site: Site) -> Iterator[Callable[[str], Snapshots]]:
    with ExitStack() as stack:

        def make(name: str) -> Snapshots:
            client = stack.enter_context(site.daemon.client(name))
            stack.callback(collect_garbage, client)
            return client

        yield make


def test_a_pool_above_its_limit_takes_no_more(site: Site, client: Callable[[str], Snapshots], place: Path) -> None:
    full = client("full")
    layer(full, "base", "", place, file="of the base")
    mounts = full.prepare("filler", "base")
    with mounted(mounts, place) as root, Store(site.root("full")) as store:
        for number in range(64):
            if store.pool.status().data_available < 4 * MIB:
                break
            fill(root / f"file-{number}", MIB)
            os.sync()
    for make in (full.prepare, full.view):
        for parent in ("", "base"):
            with refused(EXHAUSTED, "less than 10%.*pool extend"):
                make("key", parent)
    assert full.mounts("filler") == mounts
    assert full.usage("filler").size > 20 * MIB
    assert full.update("filler", {"k": "v"}).labels == {"k": "v"}
    full.commit("filled", "filler")
    assert {info.name for info in full.list()} == {"base", "filled"}
    full.remove("filled")
    full.prepare("key", "base")  # what is being removed is waited for


def test_a_pool_that_was_taken_down_comes_up_with_the_next_call(
    site: Site, client: Callable[[str], Snapshots], place: Path
) -> None:
    lost = client("lost")
    layer(lost, "base", "", place, file="of the base")
    with mounted(lost.prepare("active", "base"), place) as root:
        (root / "file").write_text("changed")
    lost.cleanup()
    with Store(site.root("lost")) as store:
        for _ in range(2):
            store.pool.deactivate()
            with mounted(lost.mounts("active"), place) as root:
                assert (root / "file").read_text() == "changed"
        store.pool.deactivate()
        lost.view("view", "base")
        store.pool.deactivate()
        lost.commit("upper", "active")
        lost.remove("view")
        assert lost.usage("upper").inodes == 0


def test_a_pool_whose_file_is_missing(site: Site, client: Callable[[str], Snapshots], place: Path) -> None:
    lost = client("lost")
    layer(lost, "base", "", place, file="of the base")
    lost.prepare("active", "base")
    infos = lost.list()
    lost.cleanup()
    with Store(site.root("lost")) as store:
        store.pool.deactivate()
    data = site.root("lost") / "data"
    data.rename(data.with_name("away"))
    require_unavailable(lost, "missing")
    assert lost.list() == infos
    data.with_name("away").rename(data)
    require_available(lost, place)


def test_a_pool_made_by_hand_that_is_down(site: Site, client: Callable[[str], Snapshots], place: Path) -> None:
    gone, pool = client("gone"), site.pools["gone"]
    layer(gone, "base", "", place, file="of the base")
    gone.prepare("active", "base")
    infos = gone.list()
    gone.cleanup()
    with Store(site.root("gone")) as store:
        store.pool.deactivate()
    pool.down()
    require_unavailable(gone, "not active")
    assert gone.list() == infos
    pool.up()
    require_available(gone, place)


def require_unavailable(client: Snapshots, words: str) -> None:
    """What needs the pool says UNAVAILABLE, but Remove, which the garbage collector must survive."""
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.prepare("root"),
        lambda: client.prepare("child", "base"),
        lambda: client.view("view", "base"),
        lambda: client.mounts("active"),
        lambda: client.usage("active"),
    )
    for call in calls:
        with refused(UNAVAILABLE, words):
            call()
    with refused(PRECONDITION, f"remove.*{words}"):
        client.remove("active")
    assert client.stat("active").kind == "active"


def require_available(client: Snapshots, place: Path) -> None:
    """All of it works, under the same keys."""
    client.prepare("root")
    client.view("view", "base")
    for mounts in (client.prepare("child", "base"), client.mounts("active")):
        with mounted(mounts, place) as root:
            assert (root / "file").read_text() == "of the base"
    client.usage("active")
    client.remove("active")


def test_a_pool_that_needs_a_check(site: Site, client: Callable[[str], Snapshots], place: Path) -> None:
    broken, pool = client("broken"), site.pools["broken"]
    layer(broken, "base", "", place, file="of the base")
    mounts = broken.prepare("active", "base")
    infos = broken.list()
    broken.prepare("removed", "base")
    broken.cleanup()
    pool.metadata.break_writes()
    calls: tuple[Callable[[], object], ...] = (
        lambda: broken.prepare("root"),
        lambda: broken.prepare("child", "base"),
        lambda: broken.view("view", "base"),
        lambda: broken.usage("active"),
    )
    for call in calls:
        with refused(LOST, "needs a check.*thin_check"):
            call()
    broken.remove("removed")
    broken.cleanup()
    assert broken.list() == infos
    assert broken.mounts("active") == mounts
    repair(site, pool)
    require_available(broken, place)
    with Store(site.root("broken")) as store:
        broken.cleanup()
        assert thintools.ids_in(store) == {volume.device_id for volume in store.ledger.volumes()}
        assert not store.ledger.is_work_left()


def repair(site: Site, pool: Rig) -> None:
    """The pool's disk works again, its metadata is checked, and it comes up."""
    pool.metadata.heal()
    with Store(site.root("broken")) as store:
        store.lifecycle.activation.deactivate_volumes(store.ledger.store())
    pool.down()
    thintools.check(pool.metadata.node)
    program("thin_check", "--clear-needs-check-flag", "-q", str(pool.metadata.node))
    pool.up()


def test_a_key_that_is_not_there(client: Callable[[str], Snapshots]) -> None:
    snapshots = client("lost")
    calls: tuple[Callable[[], object], ...] = (
        lambda: snapshots.prepare("key", "nothing"),
        lambda: snapshots.view("key", "nothing"),
        lambda: snapshots.mounts("nothing"),
        lambda: snapshots.commit("name", "nothing"),
        lambda: snapshots.remove("nothing"),
        lambda: snapshots.stat("nothing"),
        lambda: snapshots.update("nothing", {"a": "b"}),
        lambda: snapshots.update("nothing", {"a": "b"}, ["labels.a"]),
        lambda: snapshots.usage("nothing"),
    )
    for call in calls:
        with refused(MISSING, "'nothing' is not there"):
            call()
    assert snapshots.list() == ()
