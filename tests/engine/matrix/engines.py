"""The engines of the matrix, each behind the same few methods: dockerd by its command line, containerd by ctr."""

import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from dmthin.cli.containerd_config import FIRST_WITH_DIFF, FIRST_WITH_VERSION_3
from dmthin.store.create import create_store
from enginelib.daemons import PATH, SCRATCH, Failed, tar_of
from enginelib.docker import Docker
from enginelib.waiting import PATIENCE, until
from tests.engine.matrix.base import Engine
from tests.support.archives import docker_archive, oci_archive
from tests.support.containerd import DMTHIN, SMALL, SMALL_STORE, Containerd

DOCKER_OPTIONS = ("dm.loopdatasize=8G", "dm.loopmetadatasize=64M", "dm.basesize=512M")
FIRST_WITHOUT_GRAPHDRIVERS = 28
"""The major version of dockerd from which on images lie in containerd's store."""


class DockerPlugin(Engine):
    """dockerd with dmthin as a plugin for its graph drivers."""

    kind = "dockerd, graphdriver plugin"

    def __init__(self, name: str, driver: str = "dmthin") -> None:
        self.docker = self._make(name, driver)
        self.folder = self.docker.folder
        self.dmthin, self.daemon = self.docker.dmthin, self.docker.dockerd

    def _make(self, name: str, driver: str) -> Docker:
        return Docker(SCRATCH / name, driver, *DOCKER_OPTIONS)

    def start(self) -> None:
        self.docker.start()

    def stop(self) -> None:
        self.docker.stop()

    def load(self, image: str, layers: Sequence[bytes]) -> None:
        self.docker("load", stdin=docker_archive(f"docker.io/library/{image}:latest", layers))

    def once(self, image: str, script: str, size: int = 0) -> str:
        options = ["--storage-opt", f"size={size}"] if size else []
        return self.docker.container(image, "sh", "-c", script, options=options)

    def begin(self, image: str, name: str) -> None:
        self.docker("run", "-d", "--net=none", "--name", name, image, "sleep", "1000")

    def execute(self, name: str, script: str) -> str:
        return self.docker("exec", name, "sh", "-c", script)

    def end(self, name: str) -> None:
        self.docker("stop", "-t", "0", name)

    def again(self, name: str) -> None:
        self.docker("start", name)

    def remove(self, *names: str) -> None:
        self.docker("rm", "-f", *names)

    def remove_all(self) -> None:
        if names := self.docker("ps", "-aq").split():
            self.remove(*names)

    def commit(self, name: str, image: str) -> None:
        self.docker("commit", "--pause=false", name, image)

    def save(self, image: str, file: Path) -> None:
        self.docker("save", "-o", str(file), image)

    def take(self, file: Path) -> None:
        self.docker("load", "-i", str(file))

    def digests(self, image: str) -> object:
        (found,) = json.loads(self.docker("image", "inspect", image))
        return found["Id"], found["RootFS"]

    def forget(self, *images: str) -> None:
        self.docker("rmi", *images)

    def tidy(self) -> None:
        self.docker("image", "prune", "-f")
        self.docker("builder", "prune", "-af")

    def kill_within_a_call(self, image: str, layers: Sequence[bytes]) -> None:
        """Once half of a layer has arrived, and no more comes."""
        importing = self.docker.begin("import", "-", image, stdin=subprocess.PIPE)
        tar = tar_of({f"d{number % 30}/f{number}": b"x" * 2000 for number in range(3000)})
        assert importing.stdin is not None
        importing.stdin.write(tar[: len(tar) // 2])
        importing.stdin.flush()
        until(_unpacking)
        self.dmthin.end(signal.SIGKILL)
        until(lambda: not _unpacking())
        self.start()
        importing.communicate(timeout=PATIENCE)
        self.docker.run("rmi", image)

    def prune(self) -> None:
        self.docker("container", "prune", "-f")
        self.docker("image", "prune", "-af")
        self.docker("builder", "prune", "-af")

    def volumes(self) -> list[str]:
        with self.store() as store:
            return [volume.name for volume in store.ledger.volumes() if not volume.name.startswith("@base/")]

    def elsewhere(self) -> Self:
        return type(self)(f"{self.folder.name}-2", "second")

    def left(self) -> list[str]:
        """dockerd mounts its data root at itself, and one that was killed leaves that."""
        own = f"mounts: {self.docker.data_root} "
        return [entry for entry in super().left() if not entry.startswith(own)]

    def root(self) -> Path:
        return self.docker.home

    def logs(self) -> str:
        return self.docker.logs()


class DockerStore(DockerPlugin):
    """dockerd whose images lie in containerd's store, with dmthin as a proxy snapshotter of that containerd."""

    kind = "dockerd, containerd image store"

    def _make(self, name: str, driver: str) -> Docker:
        self.containerd = Containerd(SCRATCH / f"{name}-containerd")
        return _DockerOnContainerd(SCRATCH / name, self.containerd)

    def mounts_to_commit(self) -> bool:
        return not _takes_differs()

    def tidy(self) -> None:
        super().tidy()
        self.containerd.collect_garbage()

    def prune(self) -> None:
        super().prune()
        self.containerd.collect_garbage()

    def kill_within_a_call(self, image: str, layers: Sequence[bytes]) -> None:
        _die_within(self.containerd, lambda: self.load(image, layers))

    def volumes(self) -> list[str]:
        return [snapshot.key for snapshot in self.containerd.kept()]

    def elsewhere(self) -> Self:
        return type(self)(f"{self.folder.name}-2")

    def root(self) -> Path:
        return self.containerd.stores[DMTHIN]

    def roots(self) -> list[Path]:
        return sorted(set(self.containerd.stores.values()))

    def logs(self) -> str:
        return f"{super().logs()}\n{self.containerd.logs()}"


class _DockerOnContainerd(Docker):
    """A dockerd with a containerd that runs beside it, as Debian's does."""

    def __init__(self, folder: Path, containerd: Containerd) -> None:
        self._containerd = containerd
        super().__init__(folder)
        self.dmthin = containerd.dmthin

    def _dockerd_line(self) -> Sequence[str]:
        run = f"/run/{self.folder.name}"
        config = self.folder / "daemon.json"
        config.write_text(json.dumps({"storage-driver": "dmthin", "features": {"containerd-snapshotter": True}}))
        return (
            *("dockerd", "--config-file", str(config), "--containerd", str(self._containerd.socket)),
            *("--data-root", str(self.data_root), "--exec-root", run, "--pidfile", f"{run}.pid"),
            *("--host", f"unix://{self.socket}", "--iptables=false", "--ip6tables=false", "--bridge=none"),
        )

    def start(self) -> None:
        _start(self._containerd)
        if not self.dockerd.runs:
            self.dockerd.start()
        until(lambda: not self.dockerd.runs or self.run("version").returncode == 0)
        assert self.dockerd.runs, f"dockerd ended: {self.dockerd.log.read_text()[-2000:]}"

    def stop(self) -> None:
        if self.dockerd.runs:
            self.dockerd.end()
        self._containerd.stop()


class Ctr(Engine):
    """containerd with dmthin as a proxy snapshotter, driven by ctr."""

    kind = "containerd"

    def __init__(self, name: str) -> None:
        self.containerd = Containerd(SCRATCH / name)
        self.folder = self.containerd.folder
        self.dmthin, self.daemon = self.containerd.dmthin, self.containerd.containerd
        self._layers: dict[str, list[bytes]] = {}

    def start(self) -> None:
        _start(self.containerd)

    def stop(self) -> None:
        self.containerd.stop()

    def load(self, image: str, layers: Sequence[bytes]) -> None:
        file = self.folder / f"{image}.tar"
        file.write_bytes(oci_archive(_full(image), layers))
        try:
            self.take(file)
        finally:
            file.unlink()
        self._layers[image] = [*layers]

    def once(self, image: str, script: str, size: int = 0) -> str:
        options = ["--snapshotter-label", f"containerd.io/snapshot/max-size={size}"] if size else []
        return self.containerd.container(_full(image), "sh", "-c", script, options=options)

    def begin(self, image: str, name: str) -> None:
        self.containerd.background(_full(image), name, "--label", f"of={image}")

    def execute(self, name: str, script: str) -> str:
        return self.containerd.execute(name, script)

    def end(self, name: str) -> None:
        if name in self.containerd("tasks", "ls", "-q").split():
            self.containerd.end_task(name)

    def again(self, name: str) -> None:
        self.containerd("tasks", "start", "-d", "--null-io", name)

    def remove(self, *names: str) -> None:
        self.containerd.discard(*names)

    def remove_all(self) -> None:
        self.remove(*self.containerd("containers", "ls", "-q").split())

    def commit(self, name: str, image: str) -> None:
        """As ctr can: the layer that the differ makes of the snapshot, on the layers of the container's image."""
        labels = json.loads(self.containerd("containers", "info", name))["Labels"]
        done = self.containerd.run("snapshots", "--snapshotter", DMTHIN, "diff", name)
        if done.returncode:
            raise Failed(done.stderr.decode())
        self.load(image, [*self._layers[labels["of"]], gzip.decompress(done.stdout)])

    def mounts_to_commit(self) -> bool:
        return not _takes_differs()

    def save(self, image: str, file: Path) -> None:
        self.containerd("images", "export", str(file), _full(image))

    def take(self, file: Path) -> None:
        """ctr of containerd 2 lets the transfer service do it, which unpacks for the snapshotters that it is told."""
        self.containerd("images", "import", "--snapshotter", DMTHIN, str(file))

    def digests(self, image: str) -> object:
        line = next(line for line in self.containerd("images", "ls").splitlines() if line.startswith(_full(image)))
        return line.split()[2]

    def forget(self, *images: str) -> None:
        self.containerd("images", "rm", "--sync", *map(_full, images))

    def tidy(self) -> None:
        self.containerd.collect_garbage()

    def kill_within_a_call(self, image: str, layers: Sequence[bytes]) -> None:
        _die_within(self.containerd, lambda: self.load(image, layers))

    def prune(self) -> None:
        if images := self.containerd("images", "ls", "-q").split():
            self.containerd("images", "rm", "--sync", *images)
        self.containerd.collect_garbage()

    def volumes(self) -> list[str]:
        return [snapshot.key for snapshot in self.containerd.kept()]

    def elsewhere(self) -> Self:
        return type(self)(f"{self.folder.name}-2")

    def root(self) -> Path:
        return self.containerd.stores[DMTHIN]

    def roots(self) -> list[Path]:
        return sorted(set(self.containerd.stores.values()))

    def logs(self) -> str:
        return self.containerd.logs()


def _full(image: str) -> str:
    return f"docker.io/library/{image}:latest"


def _start(containerd: Containerd) -> None:
    """Start a containerd, with the smallest store and all that dmthin has for its release where that is not there."""
    if not containerd.config.exists():
        create_store(containerd.stores[SMALL], SMALL_STORE).close()
        words = ["--diff"] if _takes_differs() else []
        containerd.write_config(*words, version=3 if _release() >= FIRST_WITH_VERSION_3 else 2)
    containerd.start()


def _die_within(containerd: Containerd, action: Callable[[], object]) -> None:
    """Let dmthin die within a Commit that an action brings about."""
    containerd.orders.write_text("Commit 1")
    with suppress(Failed):
        action()
    until(lambda: not containerd.dmthin.runs)
    assert containerd.dmthin.end() == -signal.SIGKILL


def _unpacking() -> list[str]:
    """The processes of dmthin that unpack layers."""
    done = subprocess.run(["pgrep", "-f", "dmthin.layers.worker"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def _takes_differs() -> bool:
    """Whether the guest's containerd takes proxy plugins of the type diff."""
    return _release() >= FIRST_WITH_DIFF


@cache
def _release() -> tuple[int, ...]:
    """The release of the guest's containerd."""
    return tuple(map(int, version_of("containerd", "--version").split(".")))


def version_of(*line: str) -> str:
    """The version that a program tells about itself."""
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"\b\d+(\.\d+)*", done.stdout + done.stderr)
    assert found, (line, done)
    return found[0]


def all_engines() -> dict[str, type[Engine]]:
    """The engines that the guest has, by what heads their column."""
    dockerd, containerd = (version_of(name, "--version") for name in ("dockerd", "containerd"))
    in_store = int(dockerd.partition(".")[0]) >= FIRST_WITHOUT_GRAPHDRIVERS
    return {f"dockerd {dockerd}": DockerStore if in_store else DockerPlugin, f"containerd {containerd}": Ctr}
