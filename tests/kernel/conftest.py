"""A real dm-thin kernel for every test here, clean before and clean after: `scripts/test --tier kernel` boots one."""

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dmthin.kernel import loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.dmsetup import Dmsetup
from dmthin.store.create import create_store
from dmthin.store.state.model import State
from dmthin.store.store import Store
from tests.kernel import thintools

SMALL = ("dm.loopdatasize=4G", "dm.loopmetadatasize=64M", "dm.basesize=256M")
"""Storage options of a store that is quick to make."""

_SCRATCH = Path(os.environ.get("DMTHIN_SCRATCH", "/var/lib/scratch"))
_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take every Nth test where several guests share them: DMTHIN_TEST_SHARE=2/3 is the second of three."""
    number, _, guests = os.environ.get("DMTHIN_TEST_SHARE", "1/1").partition("/")
    mine = items[int(number) - 1 :: int(guests)]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


@pytest.fixture(scope="session", autouse=True)
def kernel() -> None:
    """Fail at once, and say how, where there is no dm-thin to test on."""
    try:
        with IoctlDeviceMapper() as dm:
            assert "thin-pool" in dm.target_versions()
    except Exception as error:
        pytest.exit(f"these tests need a dm-thin kernel; run scripts/test --tier kernel ({error})", returncode=3)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test leaves the kernel as it found it."""
    before = kernel_state()
    yield
    assert kernel_state() == before


@pytest.fixture
def dm() -> Iterator[IoctlDeviceMapper]:
    """A connection to the kernel's device-mapper."""
    with IoctlDeviceMapper() as connection:
        yield connection


@pytest.fixture
def dmsetup() -> Dmsetup:
    """Device-mapper by dmsetup processes."""
    return Dmsetup()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder on a file system that takes direct I/O and punches holes; gone afterwards."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def place(scratch: Path) -> Path:
    """Where to mount something; not made yet."""
    return scratch / "mnt"


@pytest.fixture
def make_store(scratch: Path) -> Iterator[Callable[..., Store]]:
    """Make stores that are taken down, checked and destroyed after the test."""
    with ExitStack() as stack:

        def make(*options: str, name: str = "store") -> Store:
            store = create_store(scratch / name, (*SMALL, *options))
            stack.callback(take_down, store)
            return store

        yield make


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """A small store; its pool is checked when it comes down."""
    return make_store()


@pytest.fixture
def image(store: Store, tree: Path) -> str:
    """The name of an image in `store`."""
    store.images.import_("image", tree)
    return "image"


@pytest.fixture
def tree(scratch: Path) -> Path:
    """A small folder to make images of."""
    folder = scratch / "tree"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/motd").write_text("hello\n")
    (folder / "empty").mkdir()
    return folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """What the fixture `scratch` is, for as long as the block runs."""
    folder = _SCRATCH / f"test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def fill(path: Path, length: int) -> None:
    """Write a file of `length` bytes that no file system stores as a hole."""
    piece = bytes(range(256)) * 4096
    with path.open("wb", buffering=0) as file:
        while length > 0:
            length -= file.write(piece[:length])


def take_down(store: Store) -> None:
    """Unmount everything, take the pool down, check it against the ledger, destroy the store."""
    store.close()
    if not store.layout.ledger.exists():
        return
    store = Store(store.layout.root)
    for entry in mount.under(store.layout.root):
        if entry.target != str(store.layout.mounts):
            mount.unmount(Path(entry.target), lazy=True)
    check_store(store)
    store.pool.destroy()
    store.close()


def settle(store: Store) -> None:
    """Let changes end what was left; a program of a process that was killed may hold a device a moment longer."""
    for _ in range(100):
        store.pool.activate()
        if not store.ledger.unfinished():
            return
        time.sleep(0.1)


def check_store(store: Store) -> None:
    """Take the pool down; its metadata passes thin_check and holds exactly the ledger's volumes."""
    settle(store)
    assert store.ledger.unfinished() == [], "something under way was not ended"
    store.pool.deactivate()
    record = store.ledger.store()
    if record.pool:
        return
    meta = store.layout.metadata(record)
    path = meta.path
    thintools.check(path)
    assert thintools.device_ids(path) == {volume.device_id for volume in store.ledger.volumes()}
    assert all(volume.state is State.READY for volume in store.ledger.volumes())


def kernel_state() -> dict[str, list[str]]:
    """Every mapped device, bound loop and mount there is."""
    with IoctlDeviceMapper() as dm:
        devices = sorted(device.name for device in dm.devices())
    loops = [str(index) for index in loop.bound()]
    mounts = sorted(f"{entry.target} {entry.fs_type}" for entry in mount.table())
    return {"devices": devices, "loops": loops, "mounts": mounts}
