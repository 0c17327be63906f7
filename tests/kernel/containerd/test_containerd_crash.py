"""Every call of containerd's, killed with SIGKILL before and after each of its durable steps, and the daemon in use.

Whoever comes next answers the same call, nothing is left over, and containerd's garbage collector removes the rest.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest

from dmthin import steps
from dmthin.containerd.config import SnapshotterConfig, open_snapshotters
from dmthin.containerd.snapshotter import MAX_SIZE, REFERENCE, MountSpec, Snapshotter
from dmthin.errors import AlreadyExists, DmthinError, NotFound
from dmthin.kernel import mount
from dmthin.store.state.model import SPARE_NAMES, Kind, SnapshotKind, State
from dmthin.store.store import Store
from dmthin.units import MIB
from enginelib import snapshots as client
from enginelib.snapshots import Snapshots
from enginelib.waiting import until
from tests.support.docker_records import record_container
from tests.support.processes import run_until_killed
from tests.support.snapshotters import Daemon, collect_garbage, crash, layer, mounted, refused, serving
from tests.support.stores import MANY_EDGES, check_store, kernel_state, scratch_folder

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LABELS = {"containerd.io/snapshot/k": "v"}
LAYER = {REFERENCE: "sha256:1"}
CONTAINER = f"moby/1/{'0c' * 32}"
"""The key of dockerd's container."""


@dataclass(frozen=True)
class Call:
    """A call to be killed. `prepare` makes what it needs; `done` is how a repeat of it may say that it is done already.

    `holds` is what must be so after the call and its repeat. `before` is what the same process has done until then.
    """

    name: str
    run: Callable[[Snapshotter], object]
    holds: Callable[[Snapshotter], object]
    prepare: Callable[[Snapshotter], object] = lambda snapshotter: None
    done: tuple[type[DmthinError], ...] = ()
    before: Callable[[Snapshotter], object] = lambda snapshotter: None


def _base(snapshotter: Snapshotter, write: Callable[[Path], object] = lambda root: None) -> None:
    """A committed snapshot with a file, if it is not there; `write` may do more to it."""
    if any(snapshotter.list(["name==base"])):
        return
    with _mounted(snapshotter, snapshotter.prepare("base-key", "", {})) as root:
        with (root / "file").open("w") as file:
            file.write("of the base")
            file.flush()
            os.fsync(file)
        write(root)
    snapshotter.commit("base", "base-key", {}, "")


def _active(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key", "", LABELS)


def _two_children(snapshotter: Snapshotter) -> None:
    """So that there is a spare for the third."""
    for number in (1, 2):
        snapshotter.prepare(f"child-{number}", "base", {})
    _drain_spares(snapshotter)
    assert [left.name for left in snapshotter._store.ledger.unfinished() if left.name.startswith(SPARE_NAMES)]


def _drain_spares(snapshotter: Snapshotter) -> None:
    queue = snapshotter._store.background.spares
    assert queue is not None
    queue.drain()


def _a_spare_becomes_it_and_is_replaced(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key", "base", {})
    _drain_spares(snapshotter)


def _committed_child(snapshotter: Snapshotter) -> None:
    _base(snapshotter)
    with _mounted(snapshotter, snapshotter.prepare("key", "base", {})) as root:
        (root / "more").write_text("of the child")
    snapshotter.commit("name", "key", {}, "")


def _without_its_device(snapshotter: Snapshotter) -> None:
    _base(snapshotter)
    snapshotter.prepare("key", "base", {})
    with Store(_root(snapshotter)) as store:
        store.volumes.deactivate(store.ledger.ready("@snapshot/dmthin/key"))


def _container(snapshotter: Snapshotter) -> None:
    """dockerd's container as it is before its first start."""
    _base(snapshotter)
    record_container(_docker_root(_root(snapshotter)), CONTAINER, {"size": "400M"})
    snapshotter.prepare(CONTAINER, "base", {})


def _seed(snapshotter: Snapshotter) -> None:
    """A layer that another snapshotter of the store has."""
    with _snapshotter(_root(snapshotter), "other") as other, suppress(AlreadyExists):
        other.prepare("key", "", LAYER)
        other.commit("seed", "key", LAYER, "")


def _lend(snapshotter: Snapshotter) -> None:
    with pytest.raises(AlreadyExists):
        snapshotter.prepare("key", "", LAYER)


def _is_lent_once(snapshotter: Snapshotter) -> None:
    (lent,) = snapshotter.list([f'labels."{REFERENCE}"=="sha256:1",parent==""'])
    assert lent.kind is SnapshotKind.COMMITTED


def _remove_and_clean_up(snapshotter: Snapshotter) -> None:
    with suppress(NotFound):
        snapshotter.remove("key")
    snapshotter.cleanup()


def _works(kind: SnapshotKind, **files: str) -> Callable[[Snapshotter], None]:
    """The snapshot `key` is of this kind and holds these files."""

    def holds(snapshotter: Snapshotter) -> None:
        assert snapshotter.stat("key").kind is kind
        with _mounted(snapshotter, snapshotter.mounts("key")) as root:
            assert {path.name: path.read_text() for path in root.iterdir()} == files
            if kind is SnapshotKind.ACTIVE:
                (root / "new").write_text("x")

    return holds


def _is_large(key: str) -> Callable[[Snapshotter], None]:
    """The snapshot is larger than the base, and its file system too."""

    def holds(snapshotter: Snapshotter) -> None:
        with _mounted(snapshotter, snapshotter.mounts(key)) as root:
            figures = os.statvfs(root)
            assert figures.f_blocks * figures.f_frsize > 320 * MIB
            assert (root / "file").read_text() == "of the base"

    return holds


def _is_committed(snapshotter: Snapshotter) -> None:
    (only,) = snapshotter.list(["name!=base"])
    assert (only.key, only.kind, only.labels) == ("name", SnapshotKind.COMMITTED, {})


def _is_gone(name: str) -> Callable[[Snapshotter], None]:
    def holds(snapshotter: Snapshotter) -> None:
        assert name not in {snapshot.key for snapshot in snapshotter.list([])}
        snapshotter.prepare(name, "", {})

    return holds


def _is_counted(snapshotter: Snapshotter) -> None:
    size, inodes = snapshotter.usage("base")
    assert 0 < size <= MIB
    assert inodes == 1


CALLS = (
    Call("prepare", lambda s: s.prepare("key", "", {}), _works(SnapshotKind.ACTIVE), done=(AlreadyExists,)),
    Call(
        "prepare-child",
        lambda s: s.prepare("key", "base", {}),
        _works(SnapshotKind.ACTIVE, file="of the base"),
        prepare=_base,
        done=(AlreadyExists,),
    ),
    Call(
        "prepare-from-a-spare",
        _a_spare_becomes_it_and_is_replaced,
        _works(SnapshotKind.ACTIVE, file="of the base"),
        prepare=_base,
        done=(AlreadyExists,),
        before=_two_children,
    ),
    Call(
        "prepare-grown",
        lambda s: s.prepare("key", "base", {MAX_SIZE: str(400 * MIB)}),
        _is_large("key"),
        prepare=_base,
        done=(AlreadyExists,),
    ),
    Call(
        "view",
        lambda s: s.prepare("key", "base", {}, view=True),
        _works(SnapshotKind.VIEW, file="of the base"),
        prepare=_base,
        done=(AlreadyExists,),
    ),
    Call(
        "view-after-a-crash",
        lambda s: s.prepare("key", "base", {}, view=True),
        _works(SnapshotKind.VIEW, file="of the base"),
        prepare=lambda s: _base(s, crash),
        done=(AlreadyExists,),
    ),
    Call(
        "mounts",
        lambda s: s.mounts("key"),
        _works(SnapshotKind.ACTIVE, file="of the base"),
        prepare=_without_its_device,
    ),
    Call("mounts-grown", lambda s: s.mounts(CONTAINER), _is_large(CONTAINER), prepare=_container),
    Call("commit", lambda s: s.commit("name", "key", {}, ""), _is_committed, prepare=_active),
    Call("remove", lambda s: s.remove("key"), _is_gone("key"), prepare=_active, done=(NotFound,)),
    Call("remove-committed", lambda s: s.remove("name"), _is_gone("name"), prepare=_committed_child, done=(NotFound,)),
    Call(
        "update",
        lambda s: s.update("key", {"k": "2"}, ["labels.k"]),
        lambda s: s.stat("key").labels == LABELS | {"k": "2"} or pytest.fail("not updated"),
        prepare=_active,
    ),
    Call("usage", lambda s: s.usage("base"), _is_counted, prepare=_base),
    Call("cleanup", _remove_and_clean_up, _is_gone("key"), prepare=_active),
    Call("lend", _lend, _is_lent_once, prepare=_seed),
)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The store of all calls: it must stay in order whatever they leave."""
    with scratch_folder() as folder, serving(folder) as daemon:
        daemon.stop()
        yield daemon.root


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_killed_anywhere_the_same_call_is_answered(root: Path, call: Call) -> None:
    edges = 0
    killed = True
    with _snapshotter(root) as snapshotter:
        call.prepare(snapshotter)
    while killed:
        edges += 1
        killed = run_until_killed(edges, partial(_run, root, call, edges))
        with _snapshotter(root) as snapshotter:
            _what_is_listed_is_there(snapshotter)
            with suppress(*call.done):
                call.run(snapshotter)
            call.holds(snapshotter)
            snapshotter.cleanup()
            _kernel_has_no_more_than_the_ledger(snapshotter._store)
            _collect(snapshotter, "" if call.name == "usage" else "base")
            if killed:
                call.prepare(snapshotter)
        assert edges < MANY_EDGES
    print(f"{call.name}: killed at {edges - 1} edges")
    assert edges > 2, "the call has no durable step"
    for name in ("dmthin", "other"):
        with _snapshotter(root, name) as snapshotter:
            _collect(snapshotter)
    with Store(root) as store:
        assert {volume.kind for volume in store.ledger.volumes()} == {Kind.BASE}
        check_store(store)
        store.pool.activate()


def _run(root: Path, call: Call, edges: int) -> None:
    """Make the call, armed once the process has begun to serve, up to its end."""
    steps.arm(0)
    with _snapshotter(root) as snapshotter:
        call.before(snapshotter)
        steps.arm(edges)
        call.run(snapshotter)


@contextmanager
def _snapshotter(root: Path, name: str = "dmthin") -> Iterator[Snapshotter]:
    """As a daemon that has just begun has it."""
    with open_snapshotters((SnapshotterConfig(name, root),), (), _docker_root(root)) as (snapshotter,):
        yield snapshotter


def _docker_root(root: Path) -> Path:
    return root.with_name("docker")


def _root(snapshotter: Snapshotter) -> Path:
    return snapshotter._store.layout.root


def _what_is_listed_is_there(snapshotter: Snapshotter) -> None:
    """containerd hands out what it sees: a snapshot whose removal was only begun is seen whole, or not at all."""
    for snapshot in snapshotter.list(["kind!=committed"]):
        with _mounted(snapshotter, snapshotter.mounts(snapshot.key)) as root:
            assert [path.name for path in root.iterdir()] == (["file"] if snapshot.parent else [])


def _kernel_has_no_more_than_the_ledger(store: Store) -> None:
    """Volumes that the ledger has lost stay in the pool, for ids are not used again, and are found in the end."""
    record = store.ledger.store()
    volumes = store.ledger.volumes()
    assert {volume.state for volume in volumes} == {State.READY}
    devices = {device.name for device in store.dm.devices()}
    assert devices <= {record.pool_name} | {record.device_name(volume.device_id) for volume in volumes}
    assert not any(store.dm.info(name).suspended for name in devices)
    assert len(kernel_state()["loops"]) == 2
    assert [entry.target for entry in mount.under(store.layout.root)] == [str(store.layout.mounts)]


def _mounted(snapshotter: Snapshotter, one: MountSpec) -> AbstractContextManager[Path]:
    return mounted((client.Mount(one.type, one.source, one.options),), _root(snapshotter).with_name("mnt"))


def _collect(snapshotter: Snapshotter, known: str = "") -> None:
    """containerd knows this one, and not the others."""
    while snapshots := [snapshot for snapshot in snapshotter.list([]) if snapshot.key != known]:
        parents = {snapshot.parent for snapshot in snapshots}
        for snapshot in snapshots:
            if snapshot.key not in parents:
                snapshotter.remove(snapshot.key)
    snapshotter.cleanup()


# --- the daemon -----------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(scratch: Path) -> Iterator[Daemon]:
    with serving(scratch) as daemon:
        yield daemon


def test_what_is_mounted_outlives_the_daemon(daemon: Daemon, scratch: Path) -> None:
    with daemon.client() as snapshots:
        layer(snapshots, "base", "", scratch / "mnt", file="of the base")
        before = {key: snapshots.prepare(key, "base") for key in ("a", "b")} | {"v": snapshots.view("v", "base")}
        infos = snapshots.list()
    with mounted(before["a"], scratch / "mnt") as root:
        (root / "file").write_text("while it lives")
        daemon.kill()
        (root / "file").write_text("while it is dead")
        with daemon.client() as snapshots, refused(UNAVAILABLE):
            snapshots.stat("a")
        daemon.start()
        with daemon.client() as snapshots:
            assert snapshots.list() == infos
            assert {key: snapshots.mounts(key) for key in before} == before
            (root / "file").write_text("again")
            with pytest.raises(grpc.RpcError):
                snapshots.remove("a")
    with daemon.client() as snapshots:
        snapshots.commit("upper", "a")
        with mounted(snapshots.prepare("c", "upper"), scratch / "mnt") as root:
            assert (root / "file").read_text() == "again"
        collect_garbage(snapshots)


@pytest.mark.parametrize(("edge", "left"), [(1, ()), (4, ()), (9, ("key",))])
def test_a_daemon_that_dies_in_a_call_is_followed_by_one_that_answers(
    daemon: Daemon, edge: int, left: tuple[str, ...]
) -> None:
    """What it made but did not answer, containerd does not know: its collector takes that away."""
    daemon.kill()
    daemon.start(DMTHIN_FAILPOINT=str(edge))
    with daemon.client() as snapshots, refused(UNAVAILABLE):
        snapshots.prepare("key")
    daemon.start()
    with daemon.client() as snapshots:
        assert tuple(info.name for info in snapshots.list()) == left
        collect_garbage(snapshots)
        snapshots.prepare("key")
        snapshots.commit("name", "key")
        collect_garbage(snapshots)


def test_killed_under_load_everything_works_again(daemon: Daemon) -> None:
    """Each of the clients stops wherever it was; what containerd forgets of it is collected."""
    before = kernel_state()
    for _ in range(2):
        begun = [threading.Event() for _ in range(4)]
        with ExitStack() as stack:
            clients = [stack.enter_context(daemon.client()) for _ in begun]
            threads = [
                threading.Thread(target=_use, args=(client, number, event))
                for number, (client, event) in enumerate(zip(clients, begun, strict=True))
            ]
            for thread in threads:
                thread.start()
            for event in begun:
                until(event.is_set)
            daemon.kill()
            for thread in threads:
                thread.join()
        daemon.start()
        with daemon.client() as snapshots:
            for number in range(len(begun)):
                with suppress(grpc.RpcError):
                    snapshots.remove(f"view-{number}")
                for key in (f"key-{number}", f"child-{number}"):
                    with suppress(grpc.RpcError):
                        snapshots.prepare(key)
                    assert snapshots.mounts(key)
            collect_garbage(snapshots)
            assert snapshots.list() == ()
        assert kernel_state() == before


def _use(snapshots: Snapshots, number: int, begun: threading.Event) -> None:
    """Go through all calls again and again until the daemon is gone; it has begun once it was through."""
    try:
        while True:
            snapshots.prepare(f"key-{number}")
            snapshots.commit(f"name-{number}", f"key-{number}")
            snapshots.prepare(f"child-{number}", f"name-{number}")
            snapshots.view(f"view-{number}", f"name-{number}")
            snapshots.mounts(f"child-{number}")
            snapshots.update(f"child-{number}", {"k": "v"})
            if not number:
                snapshots.usage(f"child-{number}")
            snapshots.remove(f"child-{number}")
            snapshots.remove(f"view-{number}")
            snapshots.remove(f"name-{number}")
            snapshots.cleanup()
            begun.set()
    except grpc.RpcError as error:
        assert error.code() is UNAVAILABLE, error
