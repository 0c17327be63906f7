"""The reader of the data space map against thin_dump and thin_rmap, and the trim that trusts it."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmthin import steps
from dmthin.errors import NeedsRepair, NotFound
from dmthin.kernel import block
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.pool.guard import Guard
from dmthin.pool.spacemap import ENTRIES_PER_BITMAP, SpaceMap
from dmthin.store.state.model import Kind, NewVolume, Volume
from dmthin.store.store import Store
from dmthin.units import METADATA_BLOCK, MIB
from tests.support import rigs
from tests.support.processes import program
from tests.support.rigs import BLOCK, Oracle, Rig


def free_blocks(metadata: Path, at_least: int = 1) -> set[int]:
    """What the space map calls free."""
    with SpaceMap(metadata) as space_map:
        index = space_map.index()
        found = [
            number
            for bitmap in range(len(index.bitmaps))
            for first, count in space_map.free_ranges(index, bitmap, at_least)
            for number in range(first, first + count)
        ]
    assert len(found) == len(set(found))
    return set(found)


def dumped(metadata: Path) -> tuple[int, set[int]]:
    """The number of data blocks, and those that some volume maps, by thin_dump."""
    text = program("thin_dump", str(metadata)).stdout
    mapped = {int(number) for number in re.findall(r'<single_mapping [^>]*data_block="(\d+)"', text)}
    for begin, length in re.findall(r'<range_mapping [^>]*data_begin="(\d+)" length="(\d+)"', text):
        mapped |= set(range(int(begin), int(begin) + int(length)))
    match = re.search(r'nr_data_blocks="(\d+)"', text)
    assert match
    return int(match[1]), mapped


def reverse_mapped(metadata: Path, blocks: int) -> set[int]:
    """The blocks that some volume maps, by thin_rmap."""
    text = program("thin_rmap", "--region", f"0..{blocks}", str(metadata)).stdout
    ranges = re.findall(r"^data (\d+)\.\.(\d+) ->", text, re.MULTILINE)
    return {number for begin, end in ranges for number in range(int(begin), int(end))}


def copy_of(rig: Rig, path: Path) -> Path:
    """The metadata as it is on the disk now."""
    program("dd", f"if={rig.metadata.node}", f"of={path}", "bs=64k", "iflag=direct")
    return path


# --- the reader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_free_is_what_nobody_maps_on_a_live_pool(dm: IoctlDeviceMapper, scratch: Path, seed: int) -> None:
    """Random writes, discards, snapshots and deletions; then the pool stands still and two readers are compared."""
    chance = random.Random(seed)
    with rigs.pool(dm, scratch, data_size=997 * BLOCK) as rig:
        volumes = {0: Oracle(rig.thin(0), 256, random.Random(seed))}
        for step in range(1, 100):
            _do_something(rig, volumes, chance, step)
        with Guard(rig.pool.name):
            free = free_blocks(rig.metadata.node)
            copy = copy_of(rig, scratch / "copy")
        total, mapped = dumped(copy)
        assert total == 997
        assert free == set(range(total)) - mapped
        assert mapped == reverse_mapped(copy, total)
        assert len(mapped) > 100
        for oracle in volumes.values():
            oracle.verify()


def _do_something(rig: Rig, volumes: dict[int, Oracle], chance: random.Random, step: int) -> None:
    device_id, oracle = chance.choice(sorted(volumes.items()))
    match chance.choices(("write", "discard", "snapshot", "delete"), (8, 3, 2, 1))[0]:
        case "write":
            first = chance.randrange(240)
            for number in range(first, first + chance.randrange(1, 16)):
                oracle.write(number)
        case "discard":
            for number in range(chance.randrange(240), 256, chance.randrange(1, 4)):
                oracle.discard(number)
        case "snapshot" if len(volumes) < 6:
            with rig.volume(device_id, 16 * MIB).quiesced():
                rig.pool.create_snap(step, device_id)
            volumes[step] = oracle.fork(rig.activate(step))
        case "delete" if len(volumes) > 2:
            del volumes[device_id]
            rig.volume(device_id, 16 * MIB).deactivate()
            assert rig.pool.delete(device_id)


@pytest.mark.parametrize("seed", range(3))
def test_free_is_what_nobody_maps_in_made_up_metadata(scratch: Path, seed: int) -> None:
    """Several bitmaps, the last one in part, and blocks that up to five volumes share."""
    chance = random.Random(seed)
    total = 3 * ENTRIES_PER_BITMAP + chance.randrange(1, ENTRIES_PER_BITMAP)
    ranges = [_range(chance, total) for _ in range(1500)]
    metadata = restore(scratch, total, [ranges, ranges[:700], ranges[300:400], ranges[350:360], ranges[:355]])
    blocks, mapped = dumped(metadata)
    assert blocks == total
    assert free_blocks(metadata) == set(range(total)) - mapped
    for at_least in (2, 5, 16, 100):
        assert free_blocks(metadata, at_least) == long_runs(set(range(total)) - mapped, at_least)


def _range(chance: random.Random, total: int) -> tuple[int, int]:
    begin = chance.randrange(total)
    return begin, min(chance.choice((1, 1, 2, 3, 40)), total - begin)


def restore(scratch: Path, total: int, volumes: list[list[tuple[int, int]]]) -> Path:
    """Metadata in which each volume maps the given data ranges one after the other, written by thin_restore."""
    lines = [f'<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="{total}">']
    for device_id, ranges in enumerate(volumes):
        count = sum(length for _begin, length in ranges)
        lines.append(f'<device dev_id="{device_id}" mapped_blocks="{count}" transaction="0" creation_time="0"'
                     ' snap_time="0">')  # fmt: skip
        origin = 0
        for begin, length in ranges:
            lines.append(f'<range_mapping origin_begin="{origin}" data_begin="{begin}" length="{length}" time="0"/>')
            origin += length
        lines.append("</device>")
    (scratch / "metadata.xml").write_text("\n".join([*lines, "</superblock>"]))
    block.make_sparse(scratch / "metadata", 32 * MIB)
    program("thin_restore", "-i", str(scratch / "metadata.xml"), "-o", str(scratch / "metadata"))
    return scratch / "metadata"


def long_runs(numbers: set[int], at_least: int) -> set[int]:
    """Those that stand in a row of `at_least` or more; a bitmap's edge ends a row."""
    kept: set[int] = set()
    run: list[int] = []
    for number in [*sorted(numbers), -1]:
        if run and (number != run[-1] + 1 or number % ENTRIES_PER_BITMAP == 0):
            kept |= set(run) if len(run) >= at_least else set()
            run = []
        run.append(number)
    return kept


def test_an_empty_pool_and_a_full_one(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.pool(dm, scratch, data_size=17 * BLOCK) as rig:
        node = rig.thin(0)
        with Guard(rig.pool.name):
            assert free_blocks(rig.metadata.node) == set(range(17))
        for number in range(17):
            rigs.write_block(node, number, rigs.pattern(1, number))
        with Guard(rig.pool.name):
            assert free_blocks(rig.metadata.node) == set()


@pytest.fixture
def metadata_file(scratch: Path) -> Iterator[Path]:
    yield restore(scratch, 40_000, [[(100 * n, 7) for n in range(300)]])


def blocks_read(metadata: Path) -> set[int]:
    """The metadata blocks that a reading of all bitmaps needs."""
    seen: set[int] = set()

    class Recorder(SpaceMap):
        def _read(self, block: int, salt: int) -> bytes:
            seen.add(block)
            return super()._read(block, salt)

    with Recorder(metadata) as space_map:
        index = space_map.index()
        for number in range(len(index.bitmaps)):
            list(space_map.free_ranges(index, number, 1))
    return seen


def test_any_byte_that_is_wrong_is_found(metadata_file: Path) -> None:
    chance = random.Random(1)
    needed = blocks_read(metadata_file)
    assert len(needed) == 1 + 1 + 3, "the superblock, the index, three bitmaps"
    for number in sorted(needed):
        for offset in (0, 4, 8, METADATA_BLOCK - 1, *(chance.randrange(METADATA_BLOCK) for _ in range(8))):
            flip = flipped(metadata_file, number * METADATA_BLOCK + offset, chance.randrange(1, 256))
            with flip, pytest.raises(NeedsRepair, match=f"block {number} is damaged"):
                free_blocks(metadata_file)
    free_blocks(metadata_file)


class flipped:  # noqa: N801  (reads as a verb)
    """A file with some bits of one byte the other way round."""

    def __init__(self, path: Path, offset: int, bits: int) -> None:
        self._path, self._offset, self._bits = path, offset, bits

    def _flip(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            (byte,) = file.read(1)
            file.seek(self._offset)
            file.write(bytes([byte ^ self._bits]))

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()


def test_a_good_block_in_the_wrong_place_is_found(metadata_file: Path) -> None:
    one, other, *_ = sorted(blocks_read(metadata_file) - {0})[-2:]
    with metadata_file.open("r+b") as file:
        file.seek(one * METADATA_BLOCK)
        content = file.read(METADATA_BLOCK)
        file.seek(other * METADATA_BLOCK)
        file.write(content)
    with pytest.raises(NeedsRepair):
        free_blocks(metadata_file)


def test_what_is_no_metadata(scratch: Path, metadata_file: Path) -> None:
    block.make_sparse(scratch / "zeros", MIB)
    with pytest.raises(NeedsRepair):
        free_blocks(scratch / "zeros")
    with pytest.raises(NotFound, match="nothing"):
        free_blocks(scratch / "nothing")
    with metadata_file.open("r+b") as file:
        file.truncate(METADATA_BLOCK)
    with pytest.raises(NeedsRepair):
        free_blocks(metadata_file)


# --- trim -----------------------------------------------------------------------------------------------------------


def raw_volume(store: Store, name: str, size: int = 256 * MIB) -> tuple[Volume, Path]:
    """A volume without a file system, and its node."""
    with store.volumes.creation.making(NewVolume(name, Kind.BASE, size, "ext4", None), activate=True) as volume:
        info = store.volumes.info(volume)
    assert info is not None
    return store.ledger.ready(name), Path(info.node)


def write(node: Path, blocks: range) -> None:
    for number in blocks:
        rigs.write_block(node, number, rigs.pattern(1, number))


def test_trim_gives_the_space_of_deleted_volumes_back(make_store: Callable[..., Store]) -> None:
    store = make_store("dm.blkdiscard=false")
    kept, node = raw_volume(store, "kept")
    gone, other = raw_volume(store, "gone")
    oracle = Oracle(node, 256, random.Random(1))
    for number in range(300):
        rigs.write_block(other, number, rigs.pattern(2, number))
        if number % 3 == 0:
            oracle.write()
    data = store.layout.data(store.ledger.store()).path
    full = block.allocated(data)
    store.volumes.removal.remove(gone)
    assert block.allocated(data) == full, "deletion alone gives nothing back"
    given = store.pool.trim()
    assert given == full - block.allocated(data)
    used = store.pool.status().data_used
    assert used == len(oracle.seeds) * BLOCK
    assert used <= block.allocated(data) <= used + 100 * 16 * BLOCK, "what stays are holes too small to count"
    assert store.pool.trim() == 0
    oracle.verify()
    store.volumes.deactivate(kept)


def test_trim_of_everything(make_store: Callable[..., Store]) -> None:
    store = make_store("dm.blkdiscard=false")
    volume, node = raw_volume(store, "volume")
    write(node, range(200))
    store.volumes.removal.remove(volume)
    assert store.pool.trim() >= 200 * BLOCK
    assert block.allocated(store.layout.data(store.ledger.store()).path) == 0


def test_a_block_size_above_a_mebibyte_is_trimmed_block_by_block(make_store: Callable[..., Store]) -> None:
    store = make_store("dm.blocksize=2M", "dm.blkdiscard=false")
    names = [f"volume-{number}" for number in range(5)]
    volumes = []
    for name in names:
        volume, node = raw_volume(store, name)
        rigs.write_block(node, 0, rigs.pattern(1, 0))
        volumes.append(volume)
    for volume in volumes[::2]:
        store.volumes.removal.remove(volume)
    data = store.layout.data(store.ledger.store()).path
    assert 3 * BLOCK <= store.pool.trim() < 4 * BLOCK
    assert 2 * BLOCK <= block.allocated(data) < 3 * BLOCK
    for volume in volumes[1::2]:
        store.volumes.removal.remove(volume)


def test_writers_lose_nothing_while_trim_runs_again_and_again(make_store: Callable[..., Store]) -> None:
    """Blocks go from one volume to another all the time: whatever trim takes for free must be so."""
    store = make_store("dm.blkdiscard=false", "dm.loopdatasize=2G")
    one, two = (raw_volume(store, name) for name in ("one", "two"))
    freed: list[int] = []
    steps.arm(0, lambda edge: freed.extend(map(int, re.findall(r"after free (\d+) blocks", edge))))
    with (
        rigs.stomping(Oracle(one[1], 2000, random.Random(1))),
        rigs.stomping(Oracle(two[1], 2000, random.Random(2))),
    ):
        for turn in range(5):
            volume, node = raw_volume(store, f"turn-{turn}")
            write(node, range(0, 100, 1 + turn % 2))
            store.volumes.removal.remove(volume)
            store.pool.trim()
    steps.arm(0)
    assert sum(freed) > 5 * 16_000, "most of the pool is free, and it was punched at every turn"
    for volume, _node in (one, two):
        store.volumes.removal.remove(volume)


def test_trim_reports_its_progress(make_store: Callable[..., Store]) -> None:
    store = make_store("dm.loopdatasize=6G")
    heard: list[tuple[int, int]] = []
    store.pool.trim(lambda done, total: heard.append((done, total)))
    assert heard[-1] == (7, 7)
    assert [done for done, _total in heard] == sorted({done for done, _total in heard})
