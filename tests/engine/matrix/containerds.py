"""containerd in the matrix: what it shares with a dockerd that stands on it, and containerd driven by ctr."""

import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from dmthin.cli.containerd_config import FIRST_WITH_DIFF, FIRST_WITH_VERSION_3
from dmthin.store.create import create_store
from enginelib.daemons import PATH, SCRATCH, Failed
from enginelib.waiting import until
from tests.engine.matrix.base import Engine
from tests.support.archives import oci_archive
from tests.support.containerd import DMTHIN, SMALL, SMALL_STORE, Containerd


class OnContainerd(Engine):
    """What dockerd on containerd's image store and containerd itself have in common: dmthin as a proxy snapshotter."""

    containerd: Containerd

    def mounts_to_commit(self) -> bool:
        return not _takes_differs()

    def kill_within_a_call(self, image: str, layers: Sequence[bytes]) -> None:
        """Within the first Commit that loading an image brings about."""
        self.containerd.orders.write_text("Commit 1")
        with suppress(Failed):
            self.load(image, layers)
        until(lambda: not self.containerd.dmthin.runs)
        assert self.containerd.dmthin.end() == -signal.SIGKILL

    def volumes(self) -> list[str]:
        return [snapshot.key for snapshot in self.containerd.kept()]

    def elsewhere(self) -> Self:
        return type(self)(f"{self.folder.name}-2")

    def root(self) -> Path:
        return self.containerd.stores[DMTHIN]

    def roots(self) -> list[Path]:
        return sorted(set(self.containerd.stores.values()))


class Ctr(OnContainerd):
    """containerd with dmthin as a proxy snapshotter, driven by ctr."""

    kind = "containerd"

    def __init__(self, name: str) -> None:
        self.containerd = Containerd(SCRATCH / name)
        self.folder = self.containerd.folder
        self.dmthin, self.daemon = self.containerd.dmthin, self.containerd.containerd
        self._layers: dict[str, list[bytes]] = {}

    def start(self) -> None:
        start_containerd(self.containerd)

    def stop(self) -> None:
        self.containerd.stop()

    def load(self, image: str, layers: Sequence[bytes]) -> None:
        file = self.folder / f"{image}.tar"
        file.write_bytes(oci_archive(full_name(image), layers))
        try:
            self.take(file)
        finally:
            file.unlink()
        self._layers[image] = [*layers]

    def once(self, image: str, script: str, size: int = 0) -> str:
        options = ["--snapshotter-label", f"containerd.io/snapshot/max-size={size}"] if size else []
        return self.containerd.container(full_name(image), "sh", "-c", script, options=options)

    def begin(self, image: str, name: str) -> None:
        self.containerd.background(full_name(image), name, "--label", f"of={image}")

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

    def save(self, image: str, file: Path) -> None:
        self.containerd("images", "export", str(file), full_name(image))

    def take(self, file: Path) -> None:
        """ctr of containerd 2 has it done by the transfer service, which unpacks for the snapshotters in its config."""
        self.containerd("images", "import", "--snapshotter", DMTHIN, str(file))

    def digests(self, image: str) -> object:
        line = next(line for line in self.containerd("images", "ls").splitlines() if line.startswith(full_name(image)))
        return line.split()[2]

    def forget(self, *images: str) -> None:
        self.containerd("images", "rm", "--sync", *map(full_name, images))

    def tidy(self) -> None:
        self.containerd.collect_garbage()

    def prune(self) -> None:
        if images := self.containerd("images", "ls", "-q").split():
            self.containerd("images", "rm", "--sync", *images)
        self.containerd.collect_garbage()

    def logs(self) -> str:
        return self.containerd.logs()


def full_name(image: str) -> str:
    return f"docker.io/library/{image}:latest"


def start_containerd(containerd: Containerd) -> None:
    """Start a containerd, with the smallest store and all that dmthin has for its release where that is not there."""
    if not containerd.config.exists():
        create_store(containerd.stores[SMALL], SMALL_STORE).close()
        words = ["--diff"] if _takes_differs() else []
        containerd.write_config(*words, version=3 if _release() >= FIRST_WITH_VERSION_3 else 2)
    containerd.start()


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
