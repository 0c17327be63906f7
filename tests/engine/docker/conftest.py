"""A dockerd for all tests of this folder, with a small image; in the end nothing is left of it."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from enginelib.daemons import SCRATCH, mini_rootfs, traces
from enginelib.docker import Docker

SMALL = ("dm.loopdatasize=8G", "dm.loopmetadatasize=64M", "dm.basesize=512M")
MINI = "mini"


@pytest.fixture(scope="package")
def mini(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar of a small root file system."""
    return mini_rootfs(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="package")
def the_docker(mini: bytes) -> Iterator[Docker]:
    docker = Docker(SCRATCH / "engine-docker", "dmthin", *SMALL)
    docker.start()
    docker("import", "-", MINI, stdin=mini)
    yield docker
    docker.start()
    for container in docker("ps", "-aq").split():
        docker("rm", "-f", container)
    docker("image", "prune", "-af")
    docker("builder", "prune", "-af")
    docker.await_only_known_volumes()
    docker.stop()
    assert traces(docker.home) == []


@pytest.fixture
def docker(the_docker: Docker) -> Iterator[Docker]:
    """The dockerd, running at the begin of each test, without containers in the end."""
    the_docker.start()
    yield the_docker
    the_docker.start()
    for container in the_docker("ps", "-aq").split():
        the_docker("rm", "-f", container)


@pytest.fixture(scope="package")
def overlay2() -> Iterator[Docker]:
    """Another dockerd, on its overlay2 driver."""
    docker = Docker(SCRATCH / "peer-overlay2", "overlay2")
    docker.start()
    yield docker
    docker.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what both daemons said last where a test fails."""
    report = yield
    engines = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Docker)]
    if report.failed:
        report.sections += [("the daemons' last words", engine.logs()) for engine in dict.fromkeys(engines)]
    return report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    return tmp_path
