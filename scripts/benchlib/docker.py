"""A real dockerd on dmthin beside a dockerd on its own devicemapper driver: the same work, by the engine's API.

All daemons run at the same time, and each round does its work with each of them in turn. Their pools have the same
options, and lie as loop files on the same ext4. A third dockerd, on plain directories (vfs), tells what the engine
takes by itself.
"""

import hashlib
import http.client
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchlib.images import archive_of
from benchlib.timings import Timings
from benchlib.udev import install_rules, settle
from dmthin.store.store import Store
from enginelib.daemons import ROOTFS, SCRATCH, tar_of
from enginelib.docker import Docker, Plugin
from enginelib.waiting import until

ROUNDS = 15
IN_A_ROW = 10
FILES = 5000
POOL = ("dm.loopdatasize=20G", "dm.loopmetadatasize=128M", "dm.basesize=2G", "dm.fs=ext4")
OLD, NEW, NONE = "devicemapper", "dmthin", "vfs"
PARTS = ("create", "rm")

_TINY, _REAL = "tiny", "debian"
_API = "/v1.41"


class Api(http.client.HTTPConnection):
    """The engine's API on its socket, over one connection: a command line would start a process for each call."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=600)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def call(self, method: str, path: str, content: object = None, tar: bytes = b"") -> Any:
        """The JSON that answers a call, None where nothing does."""
        if tar:
            body, kind = tar, "application/x-tar"
        else:
            body, kind = json.dumps(content).encode() if content else b"", "application/json"
        self.request(method, _API + path, body, {"Content-Type": kind})
        answer = self.getresponse()
        said = answer.read()
        if answer.status >= 400 or b'"errorDetail"' in said:
            raise RuntimeError(f"{method} {path}: {answer.status} {said.decode()}")
        return json.loads(said.splitlines()[0]) if said.strip() else None


class Engine:
    """One dockerd, and the operations that are timed."""

    def __init__(self, driver: str, timings: Timings) -> None:
        options = () if driver == NONE else POOL
        self.driver = driver
        self.docker = Docker(SCRATCH / f"bench-{driver}", driver, *options, verbose=False)
        self.docker.start()
        self._api = Api(self.docker.socket)
        self._timings = timings

    def stop(self) -> None:
        self._api.close()
        self.docker.stop()

    def import_(self, name: str, tar: bytes) -> None:
        self._api.call("POST", f"/images/create?fromSrc=-&repo={name}", tar=tar)

    def create_and_remove(self) -> None:
        """A container that is never started; of the tiny image, which costs vfs next to nothing to copy."""
        container = self._time("create", lambda: self._create(_TINY))
        self._time("rm", lambda: self._remove(container))
        self._timings.add(f"create + rm: {self.driver}", *(f"{part}: {self.driver}" for part in PARTS))

    def many_in_a_row(self) -> None:
        """Containers created and removed without a pause, until nothing is left to do behind the answers."""
        self._time("in a row", self._many_in_a_row)

    def _many_in_a_row(self) -> None:
        for _ in range(IN_A_ROW):
            self._remove(self._create(_TINY))
        if self.driver == NEW:
            with Store(self.docker.home) as store:
                until(lambda: not store.ledger.unfinished())

    def start_and_commit(self) -> None:
        """A container of a real root file system, with a program that runs, and a file that becomes a layer."""
        container = self._create(_REAL)
        try:
            self._time("start", lambda: self._api.call("POST", f"/containers/{container}/start"))
            self._api.call("POST", f"/containers/{container}/kill")
            self._api.call("POST", f"/containers/{container}/wait")
            self._api.call("PUT", f"/containers/{container}/archive?path=/", tar=tar_of({"new": b"x" * 4096}))
            settle()
            image = self._time("commit", lambda: self._api.call("POST", f"/commit?container={container}"))["Id"]
            self._api.call("DELETE", f"/images/{image}")
        finally:
            self._remove(container)

    def load_and_remove(self, archive: bytes, image: str) -> None:
        """An image whose only layer has many small files."""
        self._time("load", lambda: self._api.call("POST", "/images/load?quiet=1", tar=archive))
        self._time("rmi", lambda: self._api.call("DELETE", f"/images/{image}"))

    def _create(self, image: str) -> str:
        content = {"Image": image, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"}}
        return str(self._api.call("POST", "/containers/create", content)["Id"])

    def _remove(self, container: str) -> None:
        self._api.call("DELETE", f"/containers/{container}?force=1")

    def _time(self, what: str, action: Callable[[], Any]) -> Any:
        settle()
        return self._timings.time(f"{what}: {self.driver}", action)


class DriverCalls:
    """What dockerd asks of dmthin for a create and an rm, asked by ourselves: nothing but dmthin is timed."""

    def __init__(self, docker: Docker, timings: Timings) -> None:
        layer = docker("image", "inspect", "-f", "{{index .RootFS.Layers 0}}", _TINY).strip()
        record = docker.data_root / "image" / NEW / "layerdb" / layer.replace(":", "/") / "cache-id"
        self._parent = record.read_text().strip()
        self._plugin = Plugin(docker.plugin)
        self._timings = timings

    def close(self) -> None:
        self._plugin.close()

    def round(self, number: int) -> None:
        """The calls in their order, as docs of the protocol and dockerd 20.10.24 have them."""
        name = hashlib.sha256(str(number).encode()).hexdigest()
        init = f"{name}-init"
        calls = (
            ("CreateReadWrite", {"ID": init, "Parent": self._parent}),
            ("Get", {"ID": init}),
            ("Put", {"ID": init}),
            ("CreateReadWrite", {"ID": name, "Parent": init}),
            ("Get", {"ID": name}),
            ("Put", {"ID": name}),
            ("Remove", {"ID": name}),
            ("Remove", {"ID": init}),
        )
        settle()
        keys = []
        for position, (method, fields) in enumerate(calls):
            key = f"{position} {method}"
            answer = self._timings.time(key, partial(self._plugin.ok, method, **fields))
            if method == "Get" and fields["ID"] == init:
                write_mount_points(Path(answer["Dir"]))
            keys.append(key)
        self._timings.add("calls", *keys)


def write_mount_points(root: Path) -> None:
    """What dockerd writes into each container's first volume, so that a Put has as much to write out."""
    for name in ("dev/pts", "dev/shm", "proc", "sys", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console"):
        (root / name).touch()
    (root / "etc/mtab").symlink_to("/proc/mounts")


def bench(rounds: int) -> int:
    """The measurement itself, as root in a guest."""
    timings = Timings()
    install_rules()
    with ExitStack() as stack:
        engines = []
        for driver in (OLD, NEW, NONE):
            engine = Engine(driver, timings)
            stack.callback(engine.stop)
            engine.import_(_TINY, tar_of({"file": b""}))
            engines.append(engine)
        old, new, _ = engines
        for engine in (old, new):
            engine.import_(_REAL, ROOTFS.read_bytes())
        calls = DriverCalls(new.docker, timings)
        stack.callback(calls.close)
        layer = tar_of({f"d{number % 50}/f{number}": b"%d" % number * 200 for number in range(FILES)})
        archive, image = archive_of([layer])
        few = max(3, rounds // 3)

        def measure(number: int) -> None:
            turn = number % 3
            for engine in (*engines[turn:], *engines[:turn]):
                engine.create_and_remove()
            calls.round(number)
            if number < few:
                for engine in (old, new) if number % 2 else (new, old):
                    engine.many_in_a_row()
                    engine.start_and_commit()
                    engine.load_and_remove(archive, image)

        measure(0)
        timings.runs.clear()  # first times are slow, in every part
        for number in range(rounds):
            measure(number)
    report(timings)
    return 0


def report(timings: Timings) -> None:
    """A table of medians with the ratio of both drivers; the driver's part; the goals."""
    print(f"{'dockerd, by its API':<34} {OLD:>22} {NEW:>22} {'old / new':>10}")
    print(f"{'':<34} {'median      90 %':>22} {'median      90 %':>22}")
    for what in ("create", "rm", "create + rm", "in a row", "start", "commit", "load", "rmi"):
        cells = " ".join(_cell(timings, f"{what}: {driver}") for driver in (OLD, NEW))
        ratio = timings.median(f"{what}: {OLD}") / timings.median(f"{what}: {NEW}")
        print(f"{_long(what):<34} {cells} {ratio:>9.1f}x")
    engine = timings.median(f"create + rm: {NONE}")
    print(f"{'create + rm with vfs: the engine':<34} {_cell(timings, f'create + rm: {NONE}')}")

    print("\nthe driver's part of create + rm")
    for key in timings.runs:
        if key[0].isdigit():
            print(f"  dmthin, {key.split()[1]:<24} {_cell(timings, key)}")
    called = timings.median("calls")
    parts = {driver: timings.median(f"create + rm: {driver}") - engine for driver in (OLD, NEW)}
    print(f"  dmthin, all its calls by the protocol  {called * 1e3:8.1f} ms")
    print(f"  dmthin, the engine's time less vfs's   {parts[NEW] * 1e3:8.1f} ms")
    print(f"  {OLD}, engine's less vfs's     {parts[OLD] * 1e3:8.1f} ms")
    print("The engine's own part is taken from vfs and a tiny image, whose few copies count as the engine's: what is")
    print(f"left for {OLD} is rather less than it takes.")

    print(f"\ndriver's part of create + rm: {parts[OLD] / called:.1f}x as fast as {OLD} (goal: 10x)")
    load = timings.median(f"load: {NEW}") / timings.median(f"load: {OLD}")
    print(f"load: {load:.2f} of {OLD}'s time (goal: no more than 1)")


def _cell(timings: Timings, name: str) -> str:
    return f"{timings.median(name) * 1e3:8.1f} {timings.high(name) * 1e3:9.1f} ms"


def _long(what: str) -> str:
    return {
        "in a row": f"{IN_A_ROW} x create + rm, to their end",
        "start": "start (a real root file system)",
        "commit": "commit (one new file)",
        "load": f"load ({FILES} small files)",
        "rmi": "rmi of those",
    }.get(what, what)
