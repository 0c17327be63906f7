"""A containerd for all tests of this folder, with an image of three layers; in the end nothing is left of it."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from dmthin.kernel import mount
from dmthin.store.create import create_store
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from enginelib.daemons import SCRATCH, mini_rootfs, tar_of, traces
from tests.support.archives import chain_ids, oci_archive
from tests.support.containerd import LARGE, SMALL, SMALL_STORE, Containerd
from tests.support.stores import check_store, kernel_state

IMAGE = "docker.io/library/layered:1"


@pytest.fixture(scope="package")
def mini(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar of a small root file system."""
    return mini_rootfs(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="package")
def layers(mini: bytes) -> list[bytes]:
    """Three layers: the upper two add, change and remove what is below."""
    second = {
        "srv/old/.wh.file": b"",
        "srv/new": b"of the second\n",
        "srv/kind": b"a file\n",
        "srv/hidden": None,
        "srv/hidden/a": b"",
        "srv/hidden/b": b"",
        "etc/motd": b"changed\n",
    }
    third = {
        ".wh.tmp": b"",
        "srv/hidden": None,
        "srv/hidden/.wh..wh..opq": b"",
        "srv/hidden/c": b"of the third\n",
        "srv/.wh.kind": b"",
    }
    return [mini, tar_of(second), tar_of(third)]


@pytest.fixture(scope="package")
def chain(layers: list[bytes]) -> list[str]:
    """The names of the image's snapshots, the lowest first."""
    return chain_ids(layers)


@pytest.fixture(scope="package")
def the_containerd(layers: list[bytes]) -> Iterator[Containerd]:
    before = kernel_state()
    containerd = Containerd(SCRATCH / "engine-containerd")
    create_store(containerd.stores[SMALL], SMALL_STORE).close()
    containerd.write_config()
    containerd.start()
    containerd.load(oci_archive(IMAGE, layers))
    yield containerd
    containerd.start()
    containerd("images", "rm", "--sync", *containerd("images", "ls", "-q").split())
    for snapshotter in containerd.stores:
        containerd.await_names(snapshotter=snapshotter)
    containerd.await_nothing_unfinished()
    for root in set(containerd.stores.values()):
        require_only_a_pool(root)
    containerd.stop()
    assert [*mount.under(containerd.folder / "root"), *mount.under(containerd.state)] == []
    for root in set(containerd.stores.values()):
        with Store(root) as store:
            check_store(store)
            assert traces(root) == []
            store.pool.destroy()
    assert kernel_state() == before


def require_only_a_pool(root: Path) -> None:
    """Nothing is left of a store but its bases and the pool."""
    with Store(root) as store:
        assert {volume.kind for volume in store.ledger.volumes()} == {Kind.BASE}
        pool = [store.ledger.store().pool_name, *(str(root / name) for name in ("data", "metadata", "mnt"))]
    assert sorted(traces(root)) == sorted(pool)


@pytest.fixture
def containerd(the_containerd: Containerd, chain: list[str]) -> Iterator[Containerd]:
    """The containerd, running at the begin of each test; in the end dmthin has the image's layers and no more."""
    the_containerd.start()
    yield the_containerd
    the_containerd.start()
    the_containerd.discard(*the_containerd("containers", "ls", "-q").split())
    the_containerd.await_names(*chain)
    for snapshotter in (LARGE, SMALL):
        the_containerd.await_names(snapshotter=snapshotter)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what both daemons said last where a test fails."""
    report = yield
    engines = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Containerd)]
    if report.failed:
        report.sections += [("the daemons' last words", engine.logs()) for engine in dict.fromkeys(engines)]
    return report
