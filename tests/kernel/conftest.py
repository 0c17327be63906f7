"""A real dm-thin kernel for every test here, clean before and clean after: `scripts/test --tier kernel` boots one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background
from tests.support.stores import SMALL, kernel_state, scratch_folder, take_down


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

        def make(*options: str, name: str = "store", background: Background | None = None) -> Store:
            store = create_store(scratch / name, (*SMALL, *options), background=background)
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
