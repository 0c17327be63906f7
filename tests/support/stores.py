"""Stores for tests: where they lie, how they are filled, taken down and checked, and what the kernel has of them."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.errors import (
    NotFound,
)
from dmthin.kernel import loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.state.model import State
from dmthin.store.store import Store
from enginelib.waiting import until
from tests.support import thintools
from tests.support.processes import program

SMALL = ("dm.loopdatasize=4G", "dm.loopmetadatasize=64M", "dm.basesize=256M")
"""Storage options of a store that is quick to make."""

_SCRATCH = Path(os.environ.get("DMTHIN_SCRATCH", "/var/lib/scratch"))
_numbers = itertools.count()


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

    def nothing_is_left() -> bool:
        store.pool.activate()
        return not store.ledger.unfinished()

    until(nothing_is_left)


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


MANY_EDGES = 500
"""More edges than any verb has: reaching it means that the verb never ends."""


def with_store(root: Path, run: Callable[[Store], object]) -> None:
    with Store(root) as store:
        run(store)


def store_exists(root: Path) -> bool:
    with suppress(NotFound), Store(root) as store:
        store.pool.activate()
        return True
    return False


def traces(store: Store) -> list[str]:
    """What the kernel still has of a store: devices, loops, mounts."""
    record = store.ledger.store()
    devices = [name for name in kernel_state()["devices"] if name.startswith(record.prefix)]
    backings = (store.layout.data(record), store.layout.metadata(record))
    loops = [f"loop of {backing.path}" for backing in backings if backing.attached_number()]
    return devices + loops + [entry.target for entry in mount.under(store.layout.root)]


def reboot(store: Store) -> None:
    """Take away what a reboot takes away, behind the store's back."""
    record = store.ledger.store()
    for entry in mount.under(store.layout.root):
        mount.unmount(Path(entry.target))
    take_pool_down(store)
    assert loop.find(store.layout.data(record).path) is None


def take_devices_down(store: Store) -> None:
    """As an administrator who takes the pool down by hand and leaves its loops."""
    record = store.ledger.store()
    names = [line.split("\t")[0] for line in program("dmsetup", "ls").stdout.splitlines()]
    ours = [name for name in names if name.startswith(record.prefix)]
    for name in sorted(ours, key=lambda name: name == record.pool_name):
        program("dmsetup", "remove", name)


def take_pool_down(store: Store) -> None:
    take_devices_down(store)
    record = store.ledger.store()
    for backing in (store.layout.data(record), store.layout.metadata(record)):
        if backing.is_file and (device := loop.find(backing.path)):
            subprocess.run(["losetup", "--detach", device.node], check=True)
