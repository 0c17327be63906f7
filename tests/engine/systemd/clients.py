"""The engines that a machine has as units, each by its own command line, and the unit of dmthin that each stands on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from enginelib.daemons import Failed
from enginelib.waiting import until
from tests.engine.matrix.containerds import full_name, version_of
from tests.engine.matrix.engines import FIRST_WITHOUT_GRAPHDRIVERS
from tests.engine.systemd.host import Unit, run
from tests.support.archives import docker_archive, oci_archive

IMAGE = "units"
PROGRAM = ("sh", "-c", "trap 'exit 0' TERM; sleep 10000 & wait")
"""What a container does; it ends at once when the machine is shut down."""


class Client(ABC):
    """An engine with one container at a time."""

    column: str
    unit: Unit
    dmthin: Unit
    on_containerd: bool
    """Whether containerd calls dmthin: it gives up on a connection that nobody answers for a moment, and says so to who
    asks within the next three seconds."""

    @abstractmethod
    def load(self, layers: Sequence[bytes]) -> None:
        """Make IMAGE known, of tars that lie one on the other."""

    @abstractmethod
    def begin(self, name: str) -> None:
        """Start a container that does nothing, and that shall run at the next boot too."""

    @abstractmethod
    def execute(self, name: str, script: str) -> str:
        """The output of a shell script in a running container."""

    @abstractmethod
    def once(self, script: str) -> str:
        """The output of a shell script in a new container."""

    @abstractmethod
    def await_boot(self, name: str) -> None:
        """Wait until a container runs that has run before the machine was shut down."""


class Docker(Client):
    """dockerd, as a plugin's user or on containerd's store."""

    def __init__(self) -> None:
        version = version_of("dockerd", "--version")
        self.column = f"dockerd {version}"
        self.on_containerd = int(version.partition(".")[0]) >= FIRST_WITHOUT_GRAPHDRIVERS
        self.unit = Unit("docker.service")
        self.dmthin = Unit(f"dmthin-{'containerd' if self.on_containerd else 'docker'}.service")

    def load(self, layers: Sequence[bytes]) -> None:
        run("docker", "load", stdin=docker_archive(full_name(IMAGE), layers))

    def begin(self, name: str) -> None:
        run("docker", "run", "-d", "--net=none", "--restart=always", "--name", name, IMAGE, *PROGRAM)

    def execute(self, name: str, script: str) -> str:
        return run("docker", "exec", name, "sh", "-c", script)

    def once(self, script: str) -> str:
        return run("docker", "run", "--rm", "--net=none", IMAGE, "sh", "-c", script)

    def await_boot(self, name: str) -> None:
        until(lambda: self._runs(name))

    def _runs(self, name: str) -> bool:
        try:
            return run("docker", "inspect", "--format={{.State.Running}}", name).strip() == "true"
        except Failed:
            return False


class Ctr(Client):
    """containerd, which starts no container by itself."""

    def __init__(self) -> None:
        self.column = f"containerd {version_of('containerd', '--version')}"
        self.unit = Unit("containerd.service")
        self.dmthin = Unit("dmthin-containerd.service")
        self.on_containerd = True
        self._numbers = count()

    def load(self, layers: Sequence[bytes]) -> None:
        file = Path("/run/image.tar")
        file.write_bytes(oci_archive(full_name(IMAGE), layers))
        run("ctr", "images", "import", "--snapshotter=dmthin", str(file))
        file.unlink()

    def begin(self, name: str) -> None:
        words = ("--null-io", "--net-host", "--snapshotter=dmthin")
        run("ctr", "run", "-d", *words, full_name(IMAGE), name, *PROGRAM)

    def execute(self, name: str, script: str) -> str:
        return run("ctr", "task", "exec", "--exec-id=one", name, "sh", "-c", script)

    def once(self, script: str) -> str:
        words = ("--net-host", "--snapshotter=dmthin")
        return run("ctr", "run", "--rm", *words, full_name(IMAGE), f"once-{next(self._numbers)}", "sh", "-c", script)

    def await_boot(self, name: str) -> None:
        until(lambda: self.unit.state == "active")
        run("ctr", "tasks", "start", "-d", "--null-io", name)
