"""What snapshots take and give back: Usage, Remove and Cleanup, and what is done behind the caller."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from dmthin.containerd import usage as counting
from dmthin.containerd.usage import UsageCounter
from dmthin.kernel import mount
from dmthin.pool.metadata import Usage
from dmthin.store.pool import Pool
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.store.volumes import cleanup
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import MIB
from enginelib.snapshots import Snapshots
from enginelib.waiting import PATIENCE
from tests.support.snapshotters import Daemon, device_of, layer, mounted, refused
from tests.support.stores import fill

MISSING = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

SLACK = MIB
"""What a file system writes for itself beside a few files: tables, directories, its journal."""


def write(root: Path, name: str, length: int) -> None:
    fill(root / name, length)
    with (root / name).open() as file:
        os.fsync(file)


# --- usage ----------------------------------------------------------------------------------------------------------


def test_usage_right_after_a_write(snapshots: Snapshots, place: Path) -> None:
    for turn, key in enumerate(("a", "b")):
        with mounted(snapshots.prepare(key), place) as root:
            before = snapshots.usage(key)
            assert before.size <= SLACK
            assert before.inodes == 0
            write(root, "file", (8 + turn) * MIB)
            for number in range(20):
                (root / f"small-{number}").touch()
            after = snapshots.usage(key)
            assert (8 + turn) * MIB <= after.size - before.size <= (8 + turn) * MIB + SLACK
            assert after.inodes == 21
        left = snapshots.usage(key)
        assert after.size <= left.size <= after.size + SLACK
        assert left.inodes == 21


def test_usage_leaves_the_parent_out(snapshots: Snapshots, place: Path) -> None:
    with mounted(snapshots.prepare("a"), place) as root:
        write(root, "one", 8 * MIB)
        write(root, "two", 4 * MIB)
    snapshots.commit("base", "a")
    parent = snapshots.usage("base")
    assert 12 * MIB <= parent.size <= 12 * MIB + 4 * SLACK
    assert parent.inodes == 2
    for key in ("c", "d"):
        snapshots.prepare(key, "base")
        assert snapshots.usage(key).size == 0
        assert snapshots.usage(key).inodes == 0
    snapshots.view("v", "base")
    assert (snapshots.usage("v").size, snapshots.usage("v").inodes) == (0, 0)
    with mounted(snapshots.mounts("c"), place) as root:
        (root / "one").unlink()
        (root / "two").unlink()
        write(root, "three", 2 * MIB)
        assert 2 * MIB <= snapshots.usage("c").size <= 2 * MIB + SLACK
        assert snapshots.usage("c").inodes == 0, "it has fewer than its parent"
    assert snapshots.usage("d").size == 0
    snapshots.commit("upper", "c")
    assert 2 * MIB <= snapshots.usage("upper").size <= 2 * MIB + 2 * SLACK
    assert snapshots.usage("base") == parent


def test_usage_of_what_is_written_over(snapshots: Snapshots, place: Path) -> None:
    """The child maps no more than before, and has it for itself."""
    with mounted(snapshots.prepare("a"), place) as root:
        write(root, "file", 8 * MIB)
    snapshots.commit("base", "a")
    with mounted(snapshots.prepare("b", "base"), place) as root, (root / "file").open("r+b") as file:
        file.write(os.urandom(4 * MIB))
        os.fsync(file.fileno())
    snapshots.commit("upper", "b")
    assert 4 * MIB <= snapshots.usage("upper").size <= 4 * MIB + 2 * SLACK
    assert snapshots.usage("upper").inodes == 0


def test_usage_of_new_snapshots_reads_no_mappings(store: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they share is known from their parent; and an old count serves until the next is made behind the caller."""
    counts = 0
    usage = Pool.usage

    def counted(pools: Pool) -> dict[int, Usage]:
        nonlocal counts
        counts += 1
        return usage(pools)

    monkeypatch.setattr(Pool, "usage", counted)
    monkeypatch.setattr(counting, "_MIN_PERIOD_SECONDS", 1000)
    behind = BackgroundQueue("test")
    counter = UsageCounter(store, behind)

    def used(key: str, parent: str, *names: str) -> int:
        snapshot, info = store.snapshots.prepare("s", key, parent, {})
        place.mkdir(exist_ok=True)
        mount.mount(info.node, place, "ext4")
        for name in names:
            write(place, name, 4 * MIB)
        mount.unmount(place)
        return counter.of(snapshot)[0]

    assert 8 * MIB <= used("a", "", "one", "two") <= 8 * MIB + 2 * SLACK
    store.snapshots.commit("s", "base", "a", {})
    assert counts == 1
    used("first", "base", "three")  # "base" was a container when all was counted
    assert counts == 2
    for number in range(3):
        assert 4 * MIB <= used(f"b{number}", "base", "one") <= 4 * MIB + SLACK
        assert used(f"c{number}", "base") <= SLACK
    assert counts == 2
    monkeypatch.setattr(counting._Sample, "age", property(lambda _: 2.0))
    monkeypatch.setattr(counting, "_MAX_PERIODS", float("inf"))
    assert 4 * MIB <= counter.of(store.snapshots.get("s", "b0"))[0] <= 4 * MIB + SLACK
    behind.drain()
    assert counts == 3
    monkeypatch.setattr(counting, "_MAX_PERIODS", 1)
    assert 4 * MIB <= counter.of(store.snapshots.get("s", "b0"))[0] <= 4 * MIB + SLACK
    assert counts == 4
    behind.close()


def test_usage_stays_as_it_was_committed(snapshots: Snapshots, daemon: Daemon, place: Path) -> None:
    layer(snapshots, "base", "", place, one="1")
    layer(snapshots, "upper", "base", place, two="2")
    before = {name: snapshots.usage(name) for name in ("base", "upper")}
    assert {name: usage.inodes for name, usage in before.items()} == {"base": 1, "upper": 1}
    daemon.kill()
    daemon.start()
    with daemon.client() as again:
        assert {name: again.usage(name) for name in ("base", "upper")} == before
    with refused(MISSING, "nothing"):
        snapshots.usage("nothing")


def test_usage_waits_for_no_writer(snapshots: Snapshots, daemon: Daemon, place: Path) -> None:
    layer(snapshots, "base", "", place, file="1")
    with mounted(snapshots.prepare("active", "base"), place) as root:
        write(root, "file", 2 * MIB)
        snapshots.view("view", "base")
        with writing_ledger(daemon.root):
            for key in ("active", "view", "base"):
                snapshots.usage(key)
            assert 2 * MIB <= snapshots.usage("active").size <= 2 * MIB + SLACK
            assert {info.name for info in snapshots.list()} == {"base", "active", "view"}


@contextmanager
def writing_ledger(root: Path) -> Iterator[None]:
    """Somebody has the ledger's only right to write; who waits for it gives up after 30 s."""
    with closing(sqlite3.connect(root / "ledger.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


# --- removal and cleanup --------------------------------------------------------------------------------------------


def test_cleanup_gives_the_space_back_to_the_host(snapshots: Snapshots, daemon: Daemon, place: Path) -> None:
    """The pool has its blocks again, and the file below it is as small as before."""
    layer(snapshots, "base", "", place, file="1")
    snapshots.cleanup()
    with Store(daemon.root) as store:
        before, allocated = store.pool.status().data_used, allocated_bytes(daemon)
        with mounted(snapshots.prepare("active", "base"), place) as root:
            write(root, "file", 32 * MIB)
        with mounted(snapshots.prepare("source", "base"), place) as root:
            write(root, "file", 16 * MIB)
        snapshots.commit("upper", "source")
        assert store.pool.status().data_used >= before + 48 * MIB
        assert allocated_bytes(daemon) >= allocated + 48 * MIB
        snapshots.remove("active")
        snapshots.remove("upper")
        snapshots.cleanup()
        assert store.pool.status().data_used == before
        assert allocated_bytes(daemon) <= allocated + MIB
        assert store.ledger.unfinished() == []


def allocated_bytes(daemon: Daemon) -> int:
    os.sync()
    return (daemon.root / "data").stat().st_blocks * 512


def test_cleanup_of_nothing(snapshots: Snapshots) -> None:
    for _ in range(3):
        snapshots.cleanup()


def test_what_is_in_use_is_not_removed(snapshots: Snapshots, place: Path) -> None:
    mounts = snapshots.prepare("active")
    with mounted(mounts, place), refused(PRECONDITION, f"remove.*mounted at {place}"):
        snapshots.remove("active")
    with device_of(mounts).open("rb"), refused(PRECONDITION, f"remove.*pid {os.getpid()}"):
        snapshots.remove("active")
    assert snapshots.stat("active").kind == "active"
    assert snapshots.mounts("active") == mounts
    snapshots.remove("active")
    with refused(MISSING, "active"):
        snapshots.remove("active")


def test_a_committed_snapshot_that_is_still_mounted(snapshots: Snapshots, place: Path) -> None:
    """A running container is committed: what is made of it has what it had at that time, and writes go on."""
    with mounted(snapshots.prepare("a"), place) as root:
        (root / "file").write_text("then")
        snapshots.commit("base", "a")
        with mounted(snapshots.prepare("b", "base"), place.with_name("b")) as child:
            assert (child / "file").read_text() == "then"
            (child / "file").write_text("of the child")
        with refused(PRECONDITION):
            snapshots.remove("base")
    snapshots.remove("b")
    snapshots.remove("base")


def test_a_device_that_lingers_does_not_hold_up_its_removal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its turn comes while the removal has the lock, and before the removal's rest."""
    volume = store.layers.create_first("a", Kind.IMAGE)
    store.volumes.activate(volume)
    monkeypatch.setattr(cleanup, "_LINGER_SECONDS", 0.0)
    queue = BackgroundQueue("test")
    begun = threading.Event()
    queue.later(0, begun.wait)  # type: ignore[arg-type]
    with Store(store.layout.root, background=Background(queue)) as daemon:
        daemon.cleanup.deactivate_later(volume)
        daemon.cleanup.remove(volume)
        begun.set()
        ending = threading.Thread(target=queue.close, daemon=True)
        ending.start()
        ending.join(PATIENCE)
        assert not ending.is_alive()
    assert store.ledger.find("a") is None
    assert store.volumes.info(volume) is None
