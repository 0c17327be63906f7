"""dmthin's own ways of doing things, as ratios against the raw ioctls and against dmsetup processes."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchlib.timings import Timings
from dmthin.kernel import devnode, dmabi, mount
from dmthin.kernel.dmabi import Flag, Header, Request
from dmthin.kernel.thin import ThinTable
from dmthin.store.create import create_store
from dmthin.store.state.model import Volume
from dmthin.store.store import Store

ROUNDS = 60
"""Of the cheap operations; processes get a tenth."""


def bench(rounds: int) -> int:
    """The measurement itself, as root on a dm-thin kernel."""
    scratch = Path(os.environ["DMTHIN_VM_SCRATCH"]) / "bench"
    tree = scratch / "tree"
    tree.mkdir(parents=True)
    (tree / "file").write_text("x" * 4096)
    timings = Timings()
    with create_store(scratch / "store", ["dm.loopdatasize=20G", "dm.basesize=1G"]) as store:
        store.images.import_("image", tree)
        workload = Workload(store, scratch, timings)
        workload.warm_up()
        for number in range(rounds):
            workload.cheap_round(number)
        for number in range(max(3, rounds // 10)):
            workload.process_round(number)
        store.pool.destroy()
    shutil.rmtree(scratch)
    report(timings)
    return 0


class Workload:
    """The same things done in several ways on one pool."""

    def __init__(self, store: Store, scratch: Path, timings: Timings) -> None:
        self.store = store
        self.timings = timings
        self.mount_point = scratch / "mount"
        self.mount_point.mkdir()
        self.raw = RawPool(store, store.ledger.ready("image"))
        self.commits = CommitFloor(scratch / "floor.db")
        self.environment = {**os.environ, "DMTHIN_ROOT": str(store.layout.root)}

    def warm_up(self) -> None:
        quiet, self.timings = self.timings, Timings()
        self.cheap_round(-1)
        self.timings = quiet

    def cheap_round(self, number: int) -> None:
        """Create and mount, ask, unmount and remove: by raw ioctls, then by the Python API; and two bare commits."""
        time, store, raw = self.timings.time, self.store, self.raw
        raw.prepare()
        time("create: raw ioctls", raw.create)
        time("create + mount: raw ioctls", lambda: raw.mount(self.mount_point))
        self._fold("create: raw ioctls", "create + mount: raw ioctls")
        time("status: raw ioctl", raw.status)
        time("unmount: raw", lambda: raw.unmount(self.mount_point))
        time("unmount + remove: raw ioctls", raw.remove)
        self._fold("unmount: raw", "unmount + remove: raw ioctls")
        time("two durable commits", self.commits.two)
        name = f"c{number}"
        time("create: Python API", lambda: store.containers.create("image", name))
        time("create + mount: Python API", lambda: store.containers.mount(name))
        self._fold("create: Python API", "create + mount: Python API")
        time("status: Python API", store.pool.status)
        time("unmount: Python API", lambda: store.containers.unmount(name))
        time("unmount + remove: Python API", lambda: store.containers.remove(name))
        self._fold("unmount: Python API", "unmount + remove: Python API")

    def process_round(self, number: int) -> None:
        """The same by processes: dmsetup and mount(8), and the dmthin command."""
        time, name = self.timings.time, f"p{number}"
        time("create: dmsetup", lambda: self.raw.create_by_dmsetup(self.run))
        node = f"/dev/mapper/{self.raw.name}"
        time("create + mount: dmsetup", lambda: self.run("mount", "-t", "ext4", node, str(self.mount_point)))
        self._fold("create: dmsetup", "create + mount: dmsetup")
        time("status: dmsetup", lambda: self.run("dmsetup", "status", "--noflush", self.raw.pool))
        time("unmount: dmsetup", lambda: self.run("umount", str(self.mount_point)))
        time("unmount + remove: dmsetup", lambda: self.raw.remove_by_dmsetup(self.run))
        self._fold("unmount: dmsetup", "unmount + remove: dmsetup")
        time("create: dmthin command", lambda: self.run("dmthin", "container", "create", "image", name))
        time("create + mount: dmthin command", lambda: self.run("dmthin", "container", "mount", name))
        self._fold("create: dmthin command", "create + mount: dmthin command")
        time("status: dmthin command", lambda: self.run("dmthin", "pool", "status"))
        time("unmount: dmthin command", lambda: self.run("dmthin", "container", "unmount", name))
        time("unmount + remove: dmthin command", lambda: self.run("dmthin", "container", "remove", name))
        self._fold("unmount: dmthin command", "unmount + remove: dmthin command")

    def run(self, *words: str) -> None:
        subprocess.run(words, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _fold(self, first: str, second: str) -> None:
        """Let the second of two steps' times be that of both together."""
        self.timings.runs[second][-1] += self.timings.runs[first][-1]


class RawPool:
    """The least that a kernel must be asked for, from buffers packed beforehand: no checks, no ledger, no locks.

    Its volumes are snapshots of `origin`.
    """

    def __init__(self, store: Store, origin: Volume) -> None:
        record = store.ledger.store()
        self.pool = record.pool_name
        self.name = "bench-raw"
        self.device_id = 16_000_000
        self.origin = origin
        self.number = store.dm.info(self.pool).number
        self._dm = store.dm
        self._fd = os.open(devnode.DM_CONTROL, os.O_RDWR)

    def prepare(self) -> None:
        """Pack the buffers of one round."""

        def packed(name: str, payload: bytes = b"", *, flags: int = 0, event: int = 0, targets: int = 0) -> bytearray:
            header = Header(data_size=1024, name=name.encode(), flags=flags, event_number=event, target_count=targets)
            return bytearray((header.pack() + payload).ljust(header.data_size, b"\0"))

        table = dmabi.pack_table([ThinTable(self.origin.size, self.number, self.device_id).target()])
        snap = dmabi.pack_message(f"create_snap {self.device_id} {self.origin.device_id}", 0)
        delete = dmabi.pack_message(f"delete {self.device_id}", 0)
        quiet = 0x4E << 16
        self._create = [
            (Request.TARGET_MSG.code, packed(self.pool, snap)),
            (Request.DEV_CREATE.code, packed(self.name)),
            (Request.TABLE_LOAD.code, packed(self.name, table, targets=1)),
            (Request.DEV_SUSPEND.code, packed(self.name, event=quiet)),
        ]
        self._remove = [
            (Request.DEV_REMOVE.code, packed(self.name, event=quiet)),
            (Request.TARGET_MSG.code, packed(self.pool, delete)),
        ]
        self._status = [(Request.TABLE_STATUS.code, packed(self.pool, flags=Flag.NO_FLUSH))]

    def create(self) -> None:
        self._send(self._create)

    def remove(self) -> None:
        self._send(self._remove)

    def status(self) -> None:
        self._send(self._status)

    def mount(self, target: Path) -> None:
        mount.mount(self._dm.info(self.name).node, target, "ext4")

    def unmount(self, target: Path) -> None:
        mount.unmount(target)

    def create_by_dmsetup(self, run: Callable[..., None]) -> None:
        table = f"0 {self.origin.size // 512} thin {self.number} {self.device_id}"
        run("dmsetup", "message", self.pool, "0", f"create_snap {self.device_id} {self.origin.device_id}")
        run("dmsetup", "create", self.name, "--table", table)

    def remove_by_dmsetup(self, run: Callable[..., None]) -> None:
        run("dmsetup", "remove", self.name)
        run("dmsetup", "message", self.pool, "0", f"delete {self.device_id}")

    def _send(self, requests: list[tuple[int, bytearray]]) -> None:
        for code, buffer in requests:
            fcntl.ioctl(self._fd, code, buffer, True)


class CommitFloor:
    """A bare SQLite database on the store's file system, as durable as the ledger."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT)")

    def two(self) -> None:
        self._connection.execute("INSERT INTO row (text) VALUES ('making')")
        self._connection.execute("UPDATE row SET text = 'ready' WHERE id = last_insert_rowid()")


def report(timings: Timings) -> None:
    """A table of medians, with the ratio to the raw ioctls that stand first in each group."""
    goal = timings.median("create + mount: raw ioctls") + timings.median("two durable commits")
    print(f"{'operation':<36} {'median':>10} {'90 %':>10} {'x raw':>8}")
    for group in ("create", "create + mount", "unmount + remove", "status"):
        names = [name for name in timings.runs if name.startswith(f"{group}: ")]
        floor = timings.median(names[0])
        for name in names:
            median, high = timings.median(name), timings.high(name)
            print(f"{name:<36} {median * 1e3:>7.2f} ms {high * 1e3:>7.2f} ms {median / floor:>8.1f}")
    print(f"{'two durable commits':<36} {timings.median('two durable commits') * 1e3:>7.2f} ms")
    ratio = timings.median("create + mount: Python API") / goal
    print(f"\nPython API, create + mount, against the raw ioctls plus two durable commits: {ratio:.2f}x (goal: 2x)")
