"""A real containerd on a dmthin of its own, both as processes of this test run."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from dmthin.store.state.model import Snapshot
from dmthin.store.store import Store
from enginelib.daemons import PATH, Daemon, Failed, last_words
from enginelib.differ import Differ
from enginelib.snapshots import Snapshots
from enginelib.waiting import listens, until

DMTHIN = "dmthin"
LARGE = "large"
"""A second snapshotter of the same daemon and store, whose snapshots have 1G."""

SMALL = "small"
"""A third one, with a small store of its own, which has XFS."""

SMALL_STORE = ("dm.fs=xfs", "dm.loopdatasize=400M", "dm.loopmetadatasize=16M", "dm.basesize=320M")

ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
"""The label of what containerd keeps though nobody refers to it."""

_ENVIRONMENT = {"PATH": PATH}


class Containerd:
    """One containerd, its dmthin and its command line. `docker_root` is the data root of a dockerd on it."""

    def __init__(self, folder: Path, docker_root: Path | None = None) -> None:
        self.folder = folder
        self._docker_root = docker_root
        self.state = Path("/run") / folder.name
        self.stores = {DMTHIN: folder / "dmthin", LARGE: folder / "dmthin", SMALL: folder / "small"}
        self.socket = Path(f"/run/{folder.name}.sock")
        self.proxy = Path(f"/run/{folder.name}-dmthin.sock")
        self.orders = folder / "orders"
        """Where a test writes in which call dmthin is to die."""

        folder.mkdir(parents=True, exist_ok=True)
        armed = (sys.executable, "-m", "tests.support.armed", str(self.orders))
        self.dmthin = Daemon(folder / "dmthin.log", *armed, *self._dmthin_words(), "-v")
        self.config = folder / "config.toml"
        self.containerd = Daemon(folder / "containerd.log", "containerd", "--config", str(self.config))
        self._numbers = count()

    def _dmthin_words(self) -> list[str]:
        snapshotters = (DMTHIN, f"{LARGE},size=1G", f"{SMALL}={self.stores[SMALL]}")
        chosen = [word for snapshotter in snapshotters for word in ("--snapshotter", snapshotter)]
        options = ("--root", str(self.stores[DMTHIN]), "--storage-opt", "dm.basesize=512M")
        dockers = ["--docker-root", str(self._docker_root)] if self._docker_root else []
        serving = ["serve", "--containerd", str(self.proxy), "--containerd-address", str(self.socket)]
        return [*options, *serving, *dockers, *chosen]

    def write_config(self, *words: str, version: int = 2) -> None:
        """What dmthin prints with more words, after the places that a second containerd on one machine must have."""
        printing = ["--print-containerd-config", "--config-version", str(version), "--cri", *words]
        line = ["dmthin", *self._dmthin_words(), *printing]
        printed = subprocess.run(line, capture_output=True, check=True, text=True).stdout
        own = f'root = "{self.folder / "root"}"\nstate = "{self.state}"\n[grpc]\n  address = "{self.socket}"\n'
        self.config.write_text(f"version = {version}\n{own}{printed}")

    def start(self) -> None:
        """Start what does not run, and wait until it answers."""
        if self.dmthin.runs and self.containerd.runs:
            return
        if not self.dmthin.runs:
            self.dmthin.start()
            until(lambda: not self.dmthin.runs or listens(self.proxy))
            with Snapshots(self.proxy) as client:
                client.list()
        if not self.containerd.runs:
            self.containerd.start()
        self.await_answers()

    def await_answers(self) -> None:
        """Wait until containerd answers, and has reached dmthin: after a failure it tries again in three seconds."""
        ask = ("snapshots", "--snapshotter", DMTHIN, "ls")
        until(lambda: not (self.dmthin.runs and self.containerd.runs) or self.run(*ask).returncode == 0)
        for daemon in (self.dmthin, self.containerd):
            assert daemon.runs, f"it ended: {daemon.log.read_text()[-2000:]}"

    def stop(self) -> None:
        """End both as a machine that shuts down does."""
        if self.containerd.runs:
            assert self.containerd.end() == 0
        if self.dmthin.runs:
            assert self.dmthin.end() == 0

    def __call__(self, *words: str) -> str:
        """The output of a ctr command. Raises Failed."""
        done = self.run(*words)
        if done.returncode:
            raise Failed(done.stderr.decode() + done.stdout.decode())
        return done.stdout.decode()

    def run(self, *words: str) -> "subprocess.CompletedProcess[bytes]":
        """A ctr command, whatever becomes of it."""
        return subprocess.run(self._line(*words), stdin=subprocess.DEVNULL, capture_output=True, env=_ENVIRONMENT)

    def begin(self, *words: str) -> "subprocess.Popen[bytes]":
        """A ctr command that goes on while we do."""
        pipe, line = subprocess.PIPE, self._line(*words)
        return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=_ENVIRONMENT)

    def _line(self, *words: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), *words]

    def load(self, archive: bytes, *options: str, snapshotter: str = DMTHIN, unpack: bool = True) -> None:
        """Import an image."""
        file = self.folder / f"{next(self._numbers)}.tar"
        file.write_bytes(archive)
        how = ["--snapshotter", snapshotter] if unpack else ["--no-unpack"]
        try:
            self(*options, "images", "import", *how, str(file))
        finally:
            file.unlink()

    def container(
        self,
        image: str,
        *program: str,
        options: Iterable[str] = (),
        snapshotter: str = DMTHIN,
        namespace: str = "default",
    ) -> str:
        """Run a program in a new container to its end; what it printed."""
        line = ["-n", namespace, "run", "--rm", "--net-host", "--snapshotter", snapshotter, *options]
        return self(*line, image, f"once-{next(self._numbers)}", *program)

    def background(self, image: str, name: str, *options: str, snapshotter: str = DMTHIN) -> None:
        """Start a container that does nothing until it is ended."""
        self(*self.background_words(image, name, *options, snapshotter=snapshotter))

    def background_words(self, image: str, name: str, *options: str, snapshotter: str = DMTHIN) -> list[str]:
        line = ["run", "-d", "--null-io", "--net-host", "--snapshotter", snapshotter, *options]
        return [*line, image, name, "sleep", "1000"]

    def execute(self, name: str, script: str) -> str:
        """The output of a shell script in a running container."""
        return self("task", "exec", "--exec-id", f"exec-{next(self._numbers)}", name, "sh", "-c", script)

    def end_task(self, name: str) -> None:
        """Kill a container's processes; the container and what it wrote stay."""
        self("task", "rm", "--force", name)

    def discard(self, *names: str) -> None:
        """End and remove containers, and their snapshots with them."""
        tasks = self("tasks", "ls", "-q").split()
        for name in names:
            if name in tasks:
                self.end_task(name)
        if names:
            self("containers", "rm", *names)

    def collect_garbage(self) -> None:
        """Let containerd's garbage collector run, and wait for it; it asks dmthin only when something was removed."""
        with self.snapshots() as client:
            client.prepare("garbage", labels=ROOTED)
            client.remove("garbage")
        self._collect()

    def _collect(self) -> None:
        self("leases", "delete", "--sync", self("leases", "create").strip())

    def snapshots(self, snapshotter: str = DMTHIN, namespace: str = "default") -> Snapshots:
        """A client of containerd's own snapshots service, through which it asks dmthin."""
        return Snapshots(self.socket, snapshotter, headers=[("containerd-namespace", namespace)])

    def differ(self, headers: Sequence[tuple[str, str]] = ()) -> Differ:
        """A client of dmthin's diff service: containerd 1.6 knows no such plugin, but has a content store."""
        return Differ(self.proxy, headers)

    def store(self, snapshotter: str = DMTHIN) -> Store:
        """The store of a snapshotter, opened beside its daemon."""
        return Store(self.stores[snapshotter])

    def kept(self, snapshotter: str = DMTHIN) -> list[Snapshot]:
        """The snapshots that dmthin has for a snapshotter."""
        with self.store(snapshotter) as store:
            return store.snapshots.all(snapshotter)

    def await_names(self, *names: str, snapshotter: str = DMTHIN) -> None:
        """Wait until dmthin has these snapshots only, as containerd's garbage collector brings about in a moment.

        The names are containerd's, without namespace and number.
        """

        def agrees() -> bool:
            now = sorted(snapshot.key.split("/", 2)[2] for snapshot in self.kept(snapshotter))
            return now == sorted(names)

        try:
            # containerd's collector forgets what is removed while it runs, until the next removal.
            until(agrees, again=self._collect)
        except AssertionError:
            raise AssertionError(f"dmthin has {self.kept(snapshotter)}, and not {sorted(names)}") from None

    def await_nothing_unfinished(self) -> None:
        """Wait until all that was left for later is done, but for spares."""
        for snapshotter in self.stores:
            with self.store(snapshotter) as store:
                until(lambda: not store.ledger.is_work_left())

    def logs(self) -> str:
        """The last words of both daemons."""
        return last_words(self.dmthin, self.containerd)
