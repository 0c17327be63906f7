"""The engines of the matrix, each behind the same few methods: dockerd by its command line, and those of containerd."""

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from enginelib.daemons import SCRATCH, tar_of
from enginelib.docker import Docker
from enginelib.waiting import PATIENCE, until
from tests.engine.matrix.base import Engine
from tests.engine.matrix.containerds import Ctr, OnContainerd, start_containerd, version_of
from tests.support.archives import docker_archive
from tests.support.containerd import Containerd

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


class DockerStore(OnContainerd, DockerPlugin):
    """dockerd whose images lie in containerd's store, with dmthin as a proxy snapshotter of that containerd."""

    kind = "dockerd, containerd image store"

    def _make(self, name: str, driver: str) -> Docker:
        self.containerd = Containerd(SCRATCH / f"{name}-containerd", docker_root=SCRATCH / name / "docker")
        return _DockerOnContainerd(SCRATCH / name, self.containerd)

    def tidy(self) -> None:
        super().tidy()
        self.containerd.collect_garbage()

    def prune(self) -> None:
        super().prune()
        self.containerd.collect_garbage()

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
        start_containerd(self._containerd)
        if not self.dockerd.runs:
            self.dockerd.start()
        until(lambda: not self.dockerd.runs or self.run("version").returncode == 0)
        assert self.dockerd.runs, f"dockerd ended: {self.dockerd.log.read_text()[-2000:]}"

    def stop(self) -> None:
        if self.dockerd.runs:
            self.dockerd.end()
        self._containerd.stop()


def _unpacking() -> list[str]:
    """The processes of dmthin that unpack layers."""
    done = subprocess.run(["pgrep", "-f", "dmthin.layers.worker"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def all_engines() -> dict[str, type[Engine]]:
    """The engines that the guest has, by what heads their column."""
    dockerd, containerd = (version_of(name, "--version") for name in ("dockerd", "containerd"))
    in_store = int(dockerd.partition(".")[0]) >= FIRST_WITHOUT_GRAPHDRIVERS
    return {f"dockerd {dockerd}": DockerStore if in_store else DockerPlugin, f"containerd {containerd}": Ctr}
