"""containerd's own devmapper snapshotter beside dmthin, in one containerd: the same calls by one client.

Their pools lie as loop files on the same ext4, with blocks, file systems and sizes alike. Through containerd both have
its metadata store before them, whose transactions are the same for both: what those take is seen by a third
snapshotter, overlayfs, which has next to nothing to do. dmthin is called at its own socket as well, under another name
that containerd does not know of and so does not clean up.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from benchlib.images import archive_of, chain_ids
from benchlib.store import CommitFloor, RawPool
from benchlib.timings import Timings
from benchlib.udev import install_rules, settle
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.pool.backing import SparseFile
from dmthin.store.lifecycle.activation import pool_table
from dmthin.store.state.model import Volume
from dmthin.store.state.snapshot_table import SnapshotTable
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import KIB, MIB, parse_size
from enginelib.daemons import ENGINES, ROOTFS, SCRATCH, Daemon, tar_of
from enginelib.snapshots import Snapshots
from enginelib.waiting import until

import grpc  # isort: skip  # once the client has told it how to bear forks

ROUNDS = 10
IN_PARALLEL = 50
SMALL_LAYERS = 6
OLD, NEW, ENGINE = "devmapper", "dmthin", "overlayfs"
DIRECT = "dmthin itself"
GOALS = {"uml": 20, "qemu": 10}
FLOOR_GOAL = 2

_DATA, _METADATA, _BASE, _BLOCK = "20G", "128M", "2G", 64 * KIB
_POOL = "bench-devmapper"
_HIDDEN = "direct"
_NAMESPACE = (("containerd-namespace", "bench"),)
_KEPT = {"containerd.io/gc.root": "1"}
_LAYER, _SERVING = "layer", "serving"
_TAG = "bench.example/debian:latest"

_SINGLE = (
    "Prepare child",
    "Prepare root",
    "View",
    "Usage",
    "Usage, new",
    "Commit",
    "Remove active",
    "Remove committed",
)
_MANY = (f"{IN_PARALLEL} Prepares", f"{IN_PARALLEL} Removes")


class Containerd:
    """One containerd with all the snapshotters, and the dmthin that it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store_root = folder / "store"
        self.socket = Path("/run/bench-containerd.sock")
        self.dmthin_socket = Path("/run/bench-dmthin.sock")
        folder.mkdir(parents=True)
        options = (f"dm.loopdatasize={_DATA}", f"dm.loopmetadatasize={_METADATA}", f"dm.basesize={_BASE}")
        self._dmthin = Daemon(
            folder / "dmthin.log",
            *("dmthin", "--root", str(self.store_root)),
            *(word for option in options for word in ("--storage-opt", option)),
            *("serve", "--containerd", str(self.dmthin_socket), "--snapshotter", NEW, "--snapshotter", _HIDDEN),
        )
        configuration = folder / "config.toml"
        configuration.write_text(self._configuration())
        self._containerd = Daemon(folder / "containerd.log", "containerd", "--config", str(configuration))
        self._data, self._metadata = SparseFile(folder / "data"), SparseFile(folder / "metadata")

    def start(self) -> None:
        self._make_pool()
        self._dmthin.start()
        until(self._dmthin_answers)
        self._containerd.start()
        until(self._answers)

    def stop(self) -> None:
        """End both; the pools and what is on them end with the guest."""
        for daemon in (self._containerd, self._dmthin):
            if daemon.runs:
                daemon.end()

    def client(self, snapshotter: str) -> Snapshots:
        return Snapshots(self.socket, snapshotter, headers=_NAMESPACE, timeout=600)

    def ctr(self, *words: str) -> str:
        """What a command of containerd's own client prints."""
        line = (str(ENGINES / "usr/bin/ctr"), "--address", str(self.socket), "--namespace", _NAMESPACE[0][1], *words)
        return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout

    def last_words(self) -> str:
        logs = (self.folder / name for name in ("containerd.log", "dmthin.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs if log.exists())

    def _make_pool(self) -> None:
        """What an administrator makes beforehand for the devmapper snapshotter; its table is that of dmthin's pool."""
        self._data.make(parse_size(_DATA))
        self._metadata.make(parse_size(_METADATA))
        table = pool_table(parse_size(_DATA), self._data.attach(), self._metadata.attach(), _BLOCK)
        Dmsetup().create(_POOL, "", [table.target()])

    def _configuration(self) -> str:
        """As it comes, but that garbage is not collected for the mere number of changes."""
        return f"""
version = 2
root = "{self.folder}/root"
state = "/run/bench-containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.gc.v1.scheduler"]
  mutation_threshold = 0
[plugins."io.containerd.snapshotter.v1.devmapper"]
  pool_name = "{_POOL}"
  base_image_size = "{_BASE}B"
  root_path = "{self.folder}/devmapper"
[proxy_plugins.{NEW}]
  type = "snapshot"
  address = "{self.dmthin_socket}"
"""

    def _dmthin_answers(self) -> bool:
        return self._answers_at(Snapshots(self.dmthin_socket, NEW), self._dmthin)

    def _answers(self) -> bool:
        return self._answers_at(self.client(OLD), self._containerd)

    def _answers_at(self, client: Snapshots, daemon: Daemon) -> bool:
        assert daemon.runs, self.last_words()
        with client:
            try:
                client.list()
            except grpc.RpcError:
                return False
            return True


class GarbageCollector:
    """containerd's, which runs when a lease is deleted synchronously (its api/services/leases/v1/leases.proto)."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._numbers = count()

    def close(self) -> None:
        self._channel.close()

    def run(self) -> None:
        """Return once what nobody refers to is removed, and the snapshotters have cleaned up."""
        name = f"bench-{next(self._numbers)}".encode()
        lease = b"\x0a" + bytes([len(name)]) + name
        self._call("Create", lease)
        self._call("Delete", lease + b"\x10\x01")

    def _call(self, method: str, body: bytes) -> None:
        call = self._channel.unary_unary(f"/containerd.services.leases.v1.Leases/{method}")
        call(body, timeout=600, metadata=_NAMESPACE)


class Caller:
    """The operations that are timed, on one snapshotter. `clean_up` returns once what was removed is gone."""

    def __init__(self, title: str, client: Snapshots, clean_up: Callable[[], None], timings: Timings) -> None:
        self.title = title
        self._client = client
        self._clean_up = clean_up
        self._timings = timings
        self._threads = ThreadPoolExecutor(IN_PARALLEL)

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()

    def make_layer(self) -> None:
        """What the children are made of, and one that is asked for its use again and again."""
        self._client.prepare("first", labels=_KEPT)
        self._client.commit(_LAYER, "first", _KEPT)
        self._client.prepare(_SERVING, _LAYER, _KEPT)

    def round(self, number: int) -> None:
        """Each call once."""
        client = self._client
        child, root, view, name = (f"{number}-{what}" for what in ("child", "root", "view", "name"))
        self._time("Prepare child", lambda: client.prepare(child, _LAYER, _KEPT))
        self._time("Prepare root", lambda: client.prepare(root, "", _KEPT))
        self._time("View", lambda: client.view(view, _LAYER, _KEPT))
        self._time("Usage", lambda: client.usage(_SERVING))
        self._time("Usage, new", lambda: client.usage(child))
        self._time("Commit", lambda: client.commit(name, child, _KEPT))
        self._time("Remove active", lambda: self._remove(root))
        self._time("Remove committed", lambda: self._remove(name))
        self._remove(view)

    def parallel_round(self, number: int) -> None:
        """Many snapshots of one layer at the same time, each by a thread, as so many pods would ask for them."""
        keys = [f"{number}-parallel-{which}" for which in range(IN_PARALLEL)]
        self._time(_MANY[0], lambda: self._at_once(lambda key: self._client.prepare(key, _LAYER, _KEPT), keys))
        self._time(_MANY[1], lambda: self._remove(*keys))

    def _at_once(self, call: Callable[[str], object], keys: list[str]) -> None:
        for _ in self._threads.map(call, keys):
            pass

    def _remove(self, *keys: str) -> None:
        """Remove snapshots, and what containerd has for them."""
        for key in keys:
            self._client.remove(key)
        self._clean_up()

    def _time(self, what: str, action: Callable[[], Any]) -> None:
        settle()
        self._timings.time(f"{what}: {self.title}", action)


class Unpacking:
    """An image with one layer of a real root file system and small ones above, unpacked from containerd's content."""

    def __init__(self, containerd: Containerd, collector: GarbageCollector, timings: Timings) -> None:
        self._containerd = containerd
        self._collector = collector
        self._timings = timings
        small = (tar_of({f"srv/{number}": b"%d" % number * 4096}) for number in range(SMALL_LAYERS))
        self._layers = [ROOTFS.read_bytes(), *small]
        archive = containerd.folder / "image.tar"
        archive.write_bytes(archive_of(self._layers, _TAG)[0])
        containerd.ctr("images", "import", "--no-unpack", str(archive))
        archive.unlink()
        images = (line.split() for line in containerd.ctr("images", "list").splitlines())
        self._digest = next(words[2] for words in images if words[0] == _TAG)

    def round(self, title: str) -> None:
        """Unpack, and take the layers away again: nothing but the highest one holds the others."""
        containerd, highest = self._containerd, chain_ids(self._layers)[-1]
        settle()
        self._timings.time(
            f"unpack: {title}", lambda: containerd.ctr("snapshots", "unpack", "--snapshotter", title, self._digest)
        )
        with containerd.client(title) as client:
            assert client.stat(highest).kind == "committed"
            client.remove(highest)
        self._collector.run()


class Floor:
    """The least that a Prepare must do, in the store's own pool; and what dmthin's Python takes, without gRPC."""

    def __init__(self, store: Store, folder: Path, timings: Timings) -> None:
        self._store = store
        self._timings = timings
        self._raw = RawPool(store, _layer_of(store))
        self._commits = CommitFloor(folder / "floor.db")

    def round(self, number: int) -> None:
        raw, keyed, key = self._raw, self._store.snapshots, f"{number}-python"
        raw.prepare()
        settle()
        self._timings.time("raw ioctls", raw.create)
        settle()
        self._timings.time("two durable commits", self._commits.two)
        raw.remove()
        settle()
        self._timings.time("Python API", lambda: keyed.prepare(_HIDDEN, key, _LAYER, {}))
        keyed.remove(_HIDDEN, key)


def _layer_of(store: Store) -> Volume:
    found = SnapshotTable(store.ledger).find(_HIDDEN, _LAYER)
    assert found is not None
    return found.volume


@contextmanager
def _opened(root: Path) -> Iterator[Store]:
    """The store beside its daemon, used as the daemon uses it."""
    work, spares = BackgroundQueue("bench"), BackgroundQueue("spares")
    with Store(root, background=Background(work, spares)) as store:
        try:
            yield store
        finally:
            store.spares.close()
            for queue in (work, spares):
                queue.close()


def bench(rounds: int) -> int:
    """The measurement itself, as root in a guest."""
    timings = Timings()
    install_rules()
    with ExitStack() as stack:
        containerd = Containerd(SCRATCH / "bench-containerd")
        stack.callback(containerd.stop)
        containerd.start()
        collector = GarbageCollector(containerd.socket)
        stack.callback(collector.close)
        direct = Snapshots(containerd.dmthin_socket, _HIDDEN, timeout=600)
        callers = [Caller(name, containerd.client(name), collector.run, timings) for name in (OLD, NEW, ENGINE)]
        callers.append(Caller(DIRECT, direct, direct.cleanup, timings))
        for caller in callers:
            stack.callback(caller.close)
            caller.make_layer()
        store = stack.enter_context(_opened(containerd.store_root))
        floor = Floor(store, containerd.folder, timings)
        unpacking = Unpacking(containerd, collector, timings)
        few = max(2, rounds // 5)

        def measure(number: int) -> None:
            turn = number % len(callers)
            for caller in (*callers[turn:], *callers[:turn]):
                caller.round(number)
            floor.round(number)

        measure(-1)
        timings.runs.clear()  # first times are slow, in every part
        for number in range(rounds):
            measure(number)
        for number in range(few):
            for caller in callers if number % 2 else reversed(callers):
                caller.parallel_round(number)
            for title in (OLD, NEW) if number % 2 else (NEW, OLD):
                unpacking.round(title)
    report(timings)
    return 0


def report(timings: Timings) -> None:
    """A table of medians with the ratio of both snapshotters; the driver's part; the goals."""
    print(f"{'':<17} {'through containerd':^52} {'old /':>6}  {'through it:':^17} {'at its socket:':^17}")
    print(f"{'median, 90 % [ms]':<17} {OLD:>25} {NEW:>25} {'new':>7} {ENGINE:>18} {NEW:>18}")
    for what in (*_SINGLE, *_MANY):
        old, new = (timings.median(f"{what}: {title}") for title in (OLD, NEW))
        cells = [_cell(timings, f"{what}: {title}") for title in (OLD, NEW, ENGINE, DIRECT)]
        print(f"{what:<17} {cells[0]:>25} {cells[1]:>25} {old / new:>6.1f}x {cells[2]:>18} {cells[3]:>18}")
    old, new = (timings.median(f"unpack: {title}") for title in (OLD, NEW))
    cells = [_cell(timings, f"unpack: {title}") for title in (OLD, NEW)]
    print(f"{'unpack of image':<17} {cells[0]:>25} {cells[1]:>25} {old / new:>6.1f}x")
    print(f"The image: a root file system of {ROOTFS.stat().st_size / MIB:.0f} MiB and {SMALL_LAYERS} small layers.")
    print("A Remove is timed until the garbage collection that it leads to has cleaned up.")
    print(f"Usage is that of a snapshot in use; {OLD} discards no blocks, as it comes.")

    print("\nthe driver's part: at its socket for dmthin, the time less overlayfs's for devmapper")
    for what in ("Prepare child", "View", "Prepare root", "Commit", _MANY[0]):
        print(f"  {what:<17} {_driver(timings, what):>6.1f}x as fast")

    parts = ("raw ioctls", "two durable commits", "Python API")
    floor = timings.median(parts[0]) + timings.median(parts[1])
    print("\nthe floor of Prepare child")
    for part in parts:
        print(f"  {part:<20} {_cell(timings, part):>18} ms")
    goal = GOALS.get(os.environ["DMTHIN_VM"], min(GOALS.values()))
    print("\ngoals")
    for what in ("Prepare child", _MANY[0]):
        all_of_it = timings.median(f"{what}: {OLD}") / timings.median(f"{what}: {NEW}")
        print(f"  {what}: {all_of_it:.1f}x, the driver's part {_driver(timings, what):.1f}x as fast (goal: {goal}x)")
    for title, key in (("by gRPC", f"Prepare child: {DIRECT}"), ("by Python", "Python API")):
        print(f"  Prepare child, {title}: {timings.median(key) / floor:.2f} of the floor (goal: {FLOOR_GOAL})")


def _driver(timings: Timings, what: str) -> float:
    old, engine, new = (timings.median(f"{what}: {title}") for title in (OLD, ENGINE, DIRECT))
    return (old - engine) / new


def _cell(timings: Timings, name: str) -> str:
    return f"{timings.median(name) * 1e3:.1f} {timings.high(name) * 1e3:9.1f}"
