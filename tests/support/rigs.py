"""Pool made by hand for tests: a loop, a linear device over it whose table can be swapped, a pool, a thin, an oracle.

The linear device between a pool and its file stands for the disk: it can break, heal and grow.
"""

import itertools
import mmap
import os
import random
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.kernel import block, loop
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper, Target
from dmthin.kernel.dmioctl import EventPoll
from dmthin.kernel.thin import PoolMode, PoolStatus, PoolTable
from dmthin.pool.thinpool import ThinPool
from dmthin.pool.volume import ThinVolume
from dmthin.units import KIB, MIB, SECTOR
from enginelib.waiting import PATIENCE
from tests.support import thintools
from tests.support.processes import background, child

BLOCK = 64 * KIB
PREFIX = "rig-"

_numbers = itertools.count()


@dataclass
class Disk:
    """A linear device over a loop over a sparse file."""

    dm: DeviceMapper
    name: str
    path: Path
    loop: loop.LoopDevice
    size: int

    @property
    def node(self) -> Path:
        return Path(self.dm.info(self.name).node)

    @property
    def number(self) -> str:
        return self.dm.info(self.name).number

    def table(self) -> list[Target]:
        return [Target(0, self.size // SECTOR, "linear", f"{self.loop.node} 0")]

    def swap(self, *targets: Target) -> None:
        """Put another table below whoever uses the disk, without waiting for anything."""
        self.dm.load(self.name, targets)
        self.dm.suspend(self.name, flush=False, lock_fs=False)
        self.dm.resume(self.name)

    def break_(self) -> None:
        """Every request fails with EIO from now on."""
        self.swap(Target(0, self.size // SECTOR, "error", ""))

    def break_writes(self) -> None:
        """Writes fail, reads work."""
        self.swap(Target(0, self.size // SECTOR, "flakey", f"{self.loop.node} 0 0 3600 1 error_writes"))

    def heal(self) -> None:
        self.swap(*self.table())

    def grow(self, size: int) -> None:
        """A larger disk, as an administrator would make it."""
        block.grow_sparse(self.path, size)
        self.loop.refresh_size()
        self.size = size
        self.heal()


@contextmanager
def disk(dm: DeviceMapper, path: Path, size: int) -> Iterator[Disk]:
    """A disk for the block; nothing of it is left but the file."""
    block.make_sparse(path, size)
    device = loop.attach(path)
    made = Disk(dm, f"{PREFIX}{next(_numbers)}-{path.name}", path, device, size)
    try:
        dm.create(made.name, table=made.table())
        try:
            yield made
        finally:
            dm.remove(made.name)
    finally:
        device.detach()


@dataclass
class Rig:
    """A pool on two disks."""

    dm: DeviceMapper
    pool: ThinPool
    data: Disk
    metadata: Disk
    features: tuple[str, ...]
    low_water: int = 0

    def table(self, *features: str) -> PoolTable:
        blocks = self.data.size // BLOCK
        words = features or self.features
        return PoolTable(blocks * BLOCK, self.metadata.number, self.data.number, BLOCK, self.low_water, words)

    def volume(self, device_id: int, size: int) -> ThinVolume:
        """A volume of the pool, active or not."""
        return ThinVolume(self.pool, device_id, size, f"{self.pool.name}-thin-{device_id}", "", self.dm)

    def thin(self, device_id: int, size: int = 16 * MIB) -> Path:
        """A new volume, active; its node."""
        self.pool.create_thin(device_id)
        return self.activate(device_id, size)

    def activate(self, device_id: int, size: int = 16 * MIB) -> Path:
        return Path(self.volume(device_id, size).activate(self.number()).node)

    def number(self) -> str:
        info = self.pool.info()
        assert info is not None
        return info.number

    def bounce(self) -> None:
        """Suspend and resume, as an administrator would do after growing or healing a disk."""
        self.dm.suspend(self.pool.name)
        self.dm.resume(self.pool.name)

    def down(self) -> None:
        """Remove the volumes and the pool."""
        for device in self.dm.devices():
            if device.name.startswith(f"{self.pool.name}-thin-"):
                self.dm.remove(device.name)
        self.pool.deactivate()

    def up(self) -> None:
        self.pool.activate(self.table())


@contextmanager
def pool(
    dm: DeviceMapper,
    folder: Path,
    *,
    data_size: int = 64 * MIB,
    metadata_size: int = 4 * MIB,
    features: tuple[str, ...] = ("skip_block_zeroing",),
    low_water: int = 0,
    check: bool = True,
) -> Iterator[Rig]:
    """A pool for the block. Its metadata passes thin_check when it comes down, unless a test has broken it."""
    with disk(dm, folder / "pool-data", data_size) as data, disk(dm, folder / "pool-metadata", metadata_size) as meta:
        name = f"{PREFIX}{next(_numbers)}-pool"
        thin_pool = ThinPool(name, f"RIG-{name}", dm, dm)
        rig = Rig(dm, thin_pool, data, meta, features, low_water)
        rig.up()
        try:
            yield rig
        except BaseException:
            with suppress(DmthinError):
                rig.data.heal()
                rig.metadata.heal()
            rig.down()
            raise
        rig.down()
        if check:
            thintools.check(meta.node)


def pattern(seed: int, number: int) -> bytes:
    """What block `number` holds when it was written with `seed`; every block of the world differs."""
    return struct.pack("<QQ", seed, number) + random.Random(seed << 32 | number).randbytes(BLOCK - 16)


def write_block(node: Path, number: int, content: bytes) -> None:
    """Write one block past the page cache."""
    with direct(node, os.O_WRONLY) as (fd, page):
        page[:] = content
        assert os.pwrite(fd, page, number * BLOCK) == BLOCK


def read_block(node: Path, number: int) -> bytes:
    """Read one block past the page cache."""
    with direct(node, os.O_RDONLY) as (fd, page):
        assert os.preadv(fd, [page], number * BLOCK) == BLOCK
        return page[:]


@contextmanager
def direct(node: Path, flags: int) -> Iterator[tuple[int, mmap.mmap]]:
    with block.opened(node, flags | os.O_DIRECT) as fd, mmap.mmap(-1, BLOCK) as page:
        yield fd, page


@dataclass
class Oracle:
    """Writes known blocks to a volume and knows what each must read as: seed by block, None where it was discarded."""

    node: Path
    blocks: int
    random: random.Random
    seeds: dict[int, int | None] = field(default_factory=dict)
    written: int = 0

    def write(self, number: int | None = None) -> None:
        number = self.random.randrange(self.blocks) if number is None else number
        seed = self.random.getrandbits(31)
        write_block(self.node, number, pattern(seed, number))
        self.seeds[number] = seed
        self.written += 1

    def discard(self, number: int) -> None:
        with block.opened(self.node, os.O_WRONLY) as fd:
            block.discard(fd, number * BLOCK, BLOCK)
        self.seeds[number] = None

    def fork(self, node: Path) -> "Oracle":
        """The oracle of a snapshot that is taken now."""
        return Oracle(node, self.blocks, random.Random(self.random.random()), dict(self.seeds))

    def verify(self) -> None:
        """Compare every block that was written, whole."""
        for number, seed in self.seeds.items():
            if seed is not None:
                assert read_block(self.node, number) == pattern(seed, number), f"block {number} of {self.node}"


@contextmanager
def stomping(oracle: Oracle) -> Iterator[None]:
    """A process that writes through the oracle while the block runs, then verifies all that it has written."""
    with background(oracle.write, oracle.verify):
        yield


def writing(node: Path, number: int) -> AbstractContextManager[int]:
    """A process that writes one block, which may have to wait: its outcome is the errno of the write."""

    def write() -> None:
        try:
            write_block(node, number, pattern(9, number))
        except OSError as error:
            os._exit(error.errno or 255)

    return child(write)


def await_mode(rig: Rig, mode: PoolMode) -> PoolStatus:
    """The pool's status once it is in a mode: every change of mode is an event."""
    with EventPoll() as events:
        events.arm()
        while (status := rig.pool.status()).mode is not mode:
            assert events.poll(PATIENCE), f"the pool is still {status.mode}"
            events.arm()
        return status


def active(info: DeviceInfo) -> bool:
    """Whether a device is up, and nothing is pending for it."""
    return (info.live_table, info.inactive_table, info.suspended, info.deferred_remove) == (True, False, False, False)
