"""podman runs what dmthin has mounted.

The first line of a test's docstring heads its row in docs/engines.md.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmthin.store.store import Store
from enginelib.daemons import SCRATCH, mini_rootfs, traces
from tests.engine.matrix.podmans import Podman, version
from tests.support.stores import SMALL, check_store, kernel_state

ROOT = SCRATCH / "for-podman"


def dmthin(*words: str) -> str:
    """The output of a command of dmthin's, without the newline."""
    line = ["dmthin", "--root", str(ROOT), "--yes", *words]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman, and a store with an image; in the end nothing is left of the store."""
    before = kernel_state()
    folder = tmp_path_factory.mktemp("rootfs")
    (folder / "rootfs.tar").write_bytes(mini_rootfs(folder))
    dmthin(*(word for option in SMALL for word in ("--storage-opt", option)), "pool", "create")
    dmthin("image", "import", "mini", str(folder / "rootfs.tar"))
    yield Podman(SCRATCH / "podman")
    with Store(ROOT) as store:
        check_store(store)
        assert traces(ROOT) == []
    dmthin("pool", "destroy")
    left = kernel_state()
    assert (left["devices"], left["loops"]) == (before["devices"], before["loops"])


@pytest.fixture(autouse=True)
def _row(request: pytest.FixtureRequest) -> None:
    head = (request.function.__doc__ or "").splitlines()[0].rstrip(".")
    request.node.user_properties += [("row", head), ("column", f"podman {version()}")]


def begin(podman: Podman, name: str) -> Path:
    """Make a container of dmthin's, and run podman's on it; the mount point."""
    dmthin("container", "create", "mini", name)
    place = dmthin("container", "mount", name)
    podman("run", "-d", "--network=none", "--name", name, "--rootfs", place, "sleep", "10000")
    return Path(place)


def finish(podman: Podman, *names: str) -> None:
    for name in names:
        podman("rm", "--force", "--time=0", name)
        dmthin("container", "unmount", name)
        dmthin("container", "remove", name)


def test_run_on_a_mounted_container(podman: Podman) -> None:
    """run --rootfs on what `dmthin container mount` prints: what it writes is in the volume."""
    dmthin("container", "create", "mini", "web", "--storage-opt", "size=384M")
    place = dmthin("container", "mount", "web")
    script = "cat /etc/motd; rm -r /srv/old; echo kept > /srv/kept; df -m / | while read _ size _; do echo $size; done"
    said = podman("run", "--rm", "--network=none", "--rootfs", place, "sh", "-c", script).split()
    assert said[0] == "hello"
    assert 256 < int(said[-1]) < 384
    assert sorted(entry.name for entry in Path(place, "srv").iterdir()) == ["kept"]
    dmthin("container", "unmount", "web")
    dmthin("container", "commit", "web", "mini:kept")
    dmthin("container", "create", "mini:kept", "other")
    place = dmthin("container", "mount", "other")
    assert podman("run", "--rm", "--network=none", "--rootfs", place, "cat", "/srv/kept") == "kept\n"
    dmthin("container", "unmount", "other")
    dmthin("container", "remove", "other")
    dmthin("container", "remove", "web")
    dmthin("image", "remove", "mini:kept")


def test_two_apart_and_grown(podman: Podman) -> None:
    """run -d --rootfs: two containers apart, exec, stop and start, resized while they run."""
    place = begin(podman, "one")
    begin(podman, "two")
    for name in ("one", "two"):
        podman("exec", name, "sh", "-c", f"echo {name} > /srv/mine")
    dmthin("container", "resize", "one", "512M")
    podman("stop", "--time=0", "one")
    podman("start", "one")
    assert (place / "srv/mine").read_text() == "one\n"
    assert [podman("exec", name, "cat", "/srv/mine") for name in ("one", "two")] == ["one\n", "two\n"]
    size = int(podman("exec", "one", "sh", "-c", "df -m / | while read _ size _; do echo $size; done").split()[-1])
    assert size > 384
    finish(podman, "one", "two")


def test_a_container_that_runs_keeps_its_volume(podman: Podman) -> None:
    """its volume is not removed while a container of podman's runs; after podman rm nothing is left."""
    place = begin(podman, "web")
    with pytest.raises(subprocess.CalledProcessError):
        dmthin("container", "remove", "web")
    assert podman("exec", "web", "cat", "/etc/motd") == "hello\n"
    finish(podman, "web")
    assert not place.exists()
