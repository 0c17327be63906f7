"""What a reboot, a crash or an administrator takes away from a store comes back, checked where it must be."""

from pathlib import Path

import pytest

from dmthin.errors import (
    NeedsRepair,
    Unavailable,
)
from dmthin.kernel import block, loop, mount
from dmthin.pool import metadata
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import METADATA_BLOCK
from tests.support.processes import program
from tests.support.raw_volumes import again, written
from tests.support.stores import SMALL, reboot, take_devices_down


def suspend(store: Store) -> None:
    """As a process that is killed while it has the pool suspended."""
    program("dmsetup", "suspend", store.ledger.store().pool_name)


def test_everything_comes_back(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    (store.containers.mount("web") / "kept").write_text("x")
    oracle = written(store)
    for take_away in (reboot, take_devices_down, suspend):
        store.containers.unmount("web")
        take_away(store)
        again(store, oracle)
        assert (store.containers.mount("web") / "kept").read_text() == "x"


def test_the_metadata_is_checked_after_a_reboot(store: Store) -> None:
    oracle = written(store)
    reboot(store)
    meta = store.layout.metadata(store.ledger.store()).path
    (root,) = (int.from_bytes(block.read(meta, 8, 320), "little"),)
    good = block.read(meta, METADATA_BLOCK, root * METADATA_BLOCK)
    overwrite(meta, root * METADATA_BLOCK, bytes(METADATA_BLOCK))
    for _ in range(2):
        with pytest.raises(NeedsRepair, match="damaged"):
            store.pool.activate()
        assert not store.pool.status().active
        assert loop.find(meta) is None
    overwrite(meta, root * METADATA_BLOCK, good)
    again(store, oracle)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_after_a_clean_end_it_is_not_checked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = written(store)
    store.volumes.deactivate(store.ledger.ready("volume"))
    store.pool.deactivate()
    monkeypatch.setattr(metadata, "check", _must_not_run)
    again(store, oracle)
    monkeypatch.undo()


def _must_not_run(path: Path) -> None:
    raise AssertionError(f"thin_check of {path}")


def test_a_store_on_tmpfs_comes_back_too(scratch: Path) -> None:
    """Its files take no direct I/O, which thin_check asks for."""
    folder = scratch / "tmpfs"
    folder.mkdir()
    mount.mount("tmpfs", folder, "tmpfs")
    try:
        store = create_store(folder / "store", SMALL)
        oracle = written(store)
        reboot(store)
        again(store, oracle)
        store.pool.destroy()
        store.close()
    finally:
        mount.unmount(folder)


def test_a_missing_file_is_named(store: Store) -> None:
    oracle = written(store)
    reboot(store)
    data = store.layout.data(store.ledger.store()).path
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(Unavailable, match=f"{data} is missing"):
        store.pool.activate()
    assert loop.find(store.layout.metadata(store.ledger.store()).path) is None
    data.with_name("elsewhere").rename(data)
    again(store, oracle)
