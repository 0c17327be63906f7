"""What a start of dockerd finds: containers that go on, containers to start again, other options than before."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmthin.kernel import mount
from enginelib.daemons import SCRATCH, tar_of, traces
from enginelib.docker import Docker
from enginelib.waiting import until
from tests.engine.docker.conftest import MINI

POOL = ("dm.loopdatasize=4G", "dm.loopmetadatasize=64M")


class Restoring(Docker):
    """A dockerd whose containers go on without it, on XFS."""

    def _dockerd_line(self) -> Sequence[str]:
        line = [word for word in super()._dockerd_line() if not word.startswith("--live-restore")]
        return [*line, "--live-restore"]

    def with_options(self, *options: str) -> None:
        """Options from the next start on."""
        self.options = (*POOL, *options)
        self.dockerd._line = tuple(self._dockerd_line())

    def mounts(self) -> list[Path]:
        """The volumes that are mounted."""
        found = (Path(entry.target) for entry in mount.under(self.home / "mnt"))
        return [place for place in found if place.name != "mnt"]


@pytest.fixture(scope="module")
def restoring(mini: bytes) -> Iterator[Restoring]:
    docker = Restoring(SCRATCH / "starts", "starts", *POOL, "dm.fs=xfs", "dm.basesize=512M")
    docker.start()
    docker("import", "-", MINI, stdin=mini)
    yield docker
    docker.start()
    assert docker("ps", "-aq") == ""
    docker("image", "prune", "-af")
    docker.await_only_known_volumes()
    docker.stop()
    assert traces(docker.home) == []


@pytest.fixture
def docker(restoring: Restoring) -> Iterator[Restoring]:
    restoring.start()
    yield restoring
    restoring.start()
    for container in restoring("ps", "-aq").split():
        restoring("rm", "-f", container)
    assert restoring.mounts() == []


def test_xfs_has_every_verb(docker: Restoring) -> None:
    assert "Backing Filesystem: xfs" in docker("info")
    docker("run", "-d", "--net=none", "--name", "web", "--storage-opt", "size=1G", MINI, "sleep", "1000")
    assert int(docker("exec", "web", "df", "-m", "/").splitlines()[1].split()[1]) > 900
    docker("exec", "web", "sh", "-c", "rm /srv/old/file; echo new > /srv/new")
    assert sorted(docker("diff", "web").splitlines()) == ["A /srv/new", "C /srv", "C /srv/old", "D /srv/old/file"]
    docker("commit", "web", "web:two")
    assert docker.container("web:two", "sh", "-c", "ls /srv/old; cat /srv/new") == "new\n"
    docker("rm", "-f", "web")
    docker("rmi", "web:two")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("both", [False, True], ids=["dockerd", "both daemons"])
def test_containers_go_on_without_dockerd(docker: Restoring, number: signal.Signals, both: bool) -> None:
    docker("run", "-d", "--net=none", "--name", "web", MINI, "sleep", "1000")
    before = docker("inspect", "-f", "{{.State.Pid}}", "web")
    (place,) = docker.mounts()
    docker.dockerd.end(number)
    if both:
        docker.dmthin.end(number)
    (place / "srv/meanwhile").write_text("on\n")
    docker.start()
    assert docker("inspect", "-f", "{{.State.Pid}}", "web") == before
    assert docker("exec", "web", "cat", "/srv/meanwhile") == "on\n"
    assert docker("diff", "web").split() == ["C", "/srv", "A", "/srv/meanwhile"]
    assert docker.mounts() == [place]
    docker("cp", "web:/srv/meanwhile", "-")
    assert docker.mounts() == [place], "one who only looks takes no mount away"
    docker("stop", "-t", "0", "web")
    assert docker.mounts() == []
    docker("start", "web")
    assert docker("exec", "web", "cat", "/srv/meanwhile") == "on\n"


def test_a_container_that_is_always_restarted(docker: Restoring) -> None:
    docker("run", "-d", "--net=none", "--name", "web", "--restart=always", MINI, "sleep", "1000")
    pid = int(docker("inspect", "-f", "{{.State.Pid}}", "web"))
    docker.dockerd.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())  # reaped by its shim, which dockerd 20.10 may trip over before
    docker.start()
    until(lambda: docker("inspect", "-f", "{{.State.Running}}", "web").strip() == "true")
    docker("exec", "web", "true")


def test_a_larger_base_is_for_images_that_come_later(docker: Restoring) -> None:
    docker.dockerd.end()
    docker.with_options("dm.fs=xfs", "dm.basesize=768M")
    docker.start()
    docker("import", "-", "later", stdin=tar_of({"another": b""}))
    sizes = [docker("image", "inspect", "-f", "{{.GraphDriver.Data.DeviceSize}}", name) for name in (MINI, "later")]
    assert [int(size) >> 20 for size in sizes] == [512, 768]
    docker("rmi", "later")


def assert_reason(docker: Docker, words: str) -> None:
    """The reason is where docs/docker.md says: not in dockerd's last words, but in its log and in dmthin's."""
    *before, last = docker.dockerd.log.read_text().strip().splitlines()
    assert last.startswith("failed to start daemon: error initializing graphdriver: driver not supported")
    logged = [line for line in before if "Failed to GetDriver graph" in line]
    assert words in logged[-1]
    ours = [line for line in docker.dmthin.log.read_text().splitlines() if "ERROR" in line]
    assert words in ours[-1]
    assert "GraphDriver.Init: dockerd does not start, and ends with 'driver not supported'" in ours[-1]


def test_info_says_where_the_log_is(docker: Restoring) -> None:
    assert f"  Log: {docker.dmthin.log}\n" in docker("info")


def test_options_that_cannot_be_keep_dockerd_from_starting(docker: Restoring) -> None:
    docker.dockerd.end()
    for option, words in (("dm.basesize=384M", "384M is less than this store's"), ("dm.nothing=1", "dm.nothing")):
        docker.with_options("dm.fs=xfs", option)
        with pytest.raises(AssertionError, match="dockerd ended"):
            docker.start()
        assert_reason(docker, words)
    docker.with_options("dm.fs=xfs")
    docker.start()
    assert docker.container(MINI, "cat", "/etc/motd") == "hello\n"
