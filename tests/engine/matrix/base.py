"""What a test of the matrix can do with an engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dmthin.store.store import Store
from enginelib.daemons import Daemon, traces
from enginelib.waiting import until
from tests.support.stores import check_store, kernel_state


class Engine(ABC):
    """An engine with a dmthin of its own. Images have short names, as `docker build -t` takes them."""

    kind: str
    dmthin: Daemon
    daemon: Daemon
    """The engine's own process."""

    folder: Path
    lowest: bytes
    """A layer with a shell."""

    _before: dict[str, list[str]]

    @abstractmethod
    def __init__(self, name: str) -> None:
        """Have one whose folder below the scratch folder has that name; nothing is started."""

    @abstractmethod
    def start(self) -> None:
        """Start what does not run, and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it as a machine that shuts down does."""

    @abstractmethod
    def load(self, image: str, layers: Sequence[bytes]) -> None:
        """Make an image known, of tars that lie one on the other."""

    @abstractmethod
    def once(self, image: str, script: str, size: int = 0) -> str:
        """Run a shell script in a new container to its end; what it printed. `size` in bytes, 0 for the default."""

    @abstractmethod
    def begin(self, image: str, name: str) -> None:
        """Start a container that does nothing until it is ended."""

    @abstractmethod
    def execute(self, name: str, script: str) -> str:
        """The output of a shell script in a running container."""

    @abstractmethod
    def end(self, name: str) -> None:
        """End a container's processes; what it wrote stays."""

    @abstractmethod
    def again(self, name: str) -> None:
        """Start a container that was ended."""

    @abstractmethod
    def remove(self, *names: str) -> None:
        """Remove containers, running or not."""

    @abstractmethod
    def commit(self, name: str, image: str) -> None:
        """Make an image of what a container has written. Raises Failed."""

    def mounts_to_commit(self) -> bool:
        """Whether a commit mounts the container's snapshot a second time, which the kernel refuses while it runs."""
        return False

    @abstractmethod
    def save(self, image: str, file: Path) -> None:
        """Write an image to an archive."""

    @abstractmethod
    def take(self, file: Path) -> None:
        """Load an archive that an engine of the same kind has saved."""

    @abstractmethod
    def digests(self, image: str) -> object:
        """What identifies an image and its layers."""

    @abstractmethod
    def forget(self, *images: str) -> None:
        """Remove images."""

    @abstractmethod
    def tidy(self) -> None:
        """Let the engine remove what nothing refers to, but no image that has a name."""

    @abstractmethod
    def prune(self) -> None:
        """Remove all that no container uses."""

    @abstractmethod
    def kill_within_a_call(self, image: str, layers: Sequence[bytes]) -> None:
        """Let dmthin die while an image is loaded, which fails."""

    @abstractmethod
    def volumes(self) -> list[str]:
        """The names of what dmthin holds for images and containers; bases are left out."""

    @abstractmethod
    def elsewhere(self) -> Self:
        """Another engine of the kind, with a store of its own, not started yet."""

    @abstractmethod
    def root(self) -> Path:
        """The root of dmthin's store."""

    @abstractmethod
    def logs(self) -> str:
        """The last words of its processes."""

    def store(self) -> Store:
        """dmthin's store, opened beside its daemon."""
        return Store(self.root())

    def begun_with(self) -> None:
        """Note which devices, loops and mounts there are before the engine starts."""
        self._before = kernel_state()

    def left(self) -> list[str]:
        """The devices, loops and mounts that have come since."""
        now = kernel_state()
        return [f"{kind}: {name}" for kind in now for name in now[kind] if name not in self._before[kind]]

    def settle(self) -> None:
        """Wait until dmthin has done what is left for later, but for spares."""
        with self.store() as store:
            until(lambda: not store.ledger.is_work_left())

    def take_down(self) -> None:
        """Remove everything, end all processes, and check that the store is sound and the kernel has nothing of it."""
        self.start()
        self.remove_all()
        self.prune()
        until(lambda: not self.volumes(), again=self.prune)
        self.settle()
        self.stop()
        for root in self.roots():
            with Store(root) as store:
                check_store(store)
                assert traces(root) == []
                store.pool.destroy()

    @abstractmethod
    def remove_all(self) -> None:
        """Remove all containers."""

    def roots(self) -> list[Path]:
        """The roots of all stores."""
        return [self.root()]
