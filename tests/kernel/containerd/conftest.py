"""A daemon with one snapshotter for the tests of a file, and a client of it."""

from collections.abc import Iterator

import pytest

from enginelib.snapshots import Snapshots
from tests.support.snapshotters import Daemon, collect_garbage, serving
from tests.support.stores import scratch_folder


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """It serves, and has a small store of its own."""
    with scratch_folder() as folder, serving(folder) as daemon:
        yield daemon


@pytest.fixture
def snapshots(daemon: Daemon) -> Iterator[Snapshots]:
    """A client of its snapshotter, which is empty before and after."""
    with daemon.client() as client:
        yield client
        collect_garbage(client)
