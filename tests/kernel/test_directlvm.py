"""A disk that the pool has for itself (dm.directlvm_device): real disks of the kernel's, loops over sparse files."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue, NoDataSpace, NoMetadataSpace, Unavailable
from dmthin.kernel import block, loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode, PoolStatus
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, KIB, METADATA_BLOCK, MIB
from enginelib.waiting import until
from tests.support import processes, rigs
from tests.support.command import Command, paste
from tests.support.processes import program, run_until_killed
from tests.support.raw_volumes import again, exhaust, forget_foreign_volumes, raw_volume, sizes, written
from tests.support.rigs import Oracle
from tests.support.stores import check_store, kernel_state, store_exists, take_down, with_store

OPTIONS = ("dm.basesize=256M",)
SMALL_POOL = ("dm.blocksize=64K", "dm.thinp_percent=25", "dm.thinp_metapercent=2")
"""Of a disk of 128M: 32M of data in a region of 120M, 2M of metadata in one of 8M."""

MakeDisk = Callable[..., Path]
MakeStore = Callable[..., Store]


@pytest.fixture
def make_disk(scratch: Path) -> Iterator[MakeDisk]:
    """Make disks, which outlive the stores on them."""
    with ExitStack() as stack:

        def make(size: int = 2 * GIB, name: str = "disk") -> Path:
            block.make_sparse(scratch / name, size)
            device = loop.attach(scratch / name)
            stack.callback(device.detach)
            return Path(device.node)

        yield make


@pytest.fixture
def disk(make_disk: MakeDisk) -> Path:
    """A disk of 2G: 1945.5M of data in a region of 1987M, 20M of metadata in one of 61M."""
    return make_disk()


@pytest.fixture
def make_direct(make_disk: MakeDisk, scratch: Path) -> Iterator[MakeStore]:
    """Make stores on disks of their own; taken down, checked and destroyed after the test."""
    with ExitStack() as stack:

        def make(*options: str, size: int = 2 * GIB) -> Store:
            store = on_disk(scratch / "direct", make_disk(size), *options)
            stack.callback(take_down, store)
            return store

        yield make


@pytest.fixture
def direct(make_direct: MakeStore) -> Store:
    return make_direct()


def on_disk(root: Path, disk: Path, *options: str, force: bool = False) -> Store:
    return create_store(root, (*OPTIONS, f"dm.directlvm_device={disk}", *options), force=force)


def devices() -> list[str]:
    return kernel_state()["devices"]


def tables(store: Store) -> dict[str, str]:
    """The linear devices of a store: what their tables say."""
    prefix = store.ledger.store().prefix
    names = [f"{prefix}-{part}" for part in ("tdata", "tmeta")]
    return {name.removeprefix(f"{prefix}-"): str(store.dm.table(name)[0]) for name in names}


def reboot(store: Store) -> None:
    """Take away what a reboot takes away, behind the store's back."""
    record = store.ledger.store()
    for entry in mount.under(store.layout.root):
        mount.unmount(Path(entry.target))
    volumes = [name for name in devices() if record.device_id_of(name) is not None]
    for name in (*volumes, record.pool_name, f"{record.prefix}-tdata", f"{record.prefix}-tmeta"):
        program("dmsetup", "remove", name)


# --- its life -------------------------------------------------------------------------------------------------------


def test_the_whole_life(scratch: Path, disk: Path, tree: Path) -> None:
    before = kernel_state()
    store = on_disk(scratch / "store", disk)
    record = store.ledger.store()
    assert sizes(store) == (1945 * MIB + 512 * KIB, 20 * MIB)
    assert (record.block_size, record.metadata_end) == (512 * KIB, 61 * MIB)
    assert store.options.discard is False
    number = block.number(disk)
    assert tables(store) == {
        "tdata": f"0 {(1945 * 2 + 1) * 1024} linear {number} {61 * 2048}",
        "tmeta": f"0 {20 * 2048} linear {number} 0",
    }
    with IoctlDeviceMapper() as dm:
        uuids = [dm.info(f"{record.prefix}-{part}").uuid for part in ("tdata", "tmeta", "pool")]
    assert uuids == [f"{record.uuid_prefix}-{part}-{store.layout.identity}" for part in ("tdata", "tmeta", "pool")]
    store.images.import_("image", tree)
    store.containers.create("image", "web")
    place = store.containers.mount("web")
    assert (place / "etc/motd").read_text() == "hello\n"
    (place / "new").write_text("x")
    report = store.pool.status()
    assert (report.mode, report.data, report.metadata) == ("rw", str(disk), str(disk))
    assert (report.data_allocated, report.host_free) == (None, None)
    assert store.pool.extend_if_due() is False
    store.pool.trim()
    with pytest.raises(InUse, match="container web is in use"):
        store.pool.deactivate()
    store.containers.unmount("web")
    check_store(store)
    assert devices() == before["devices"]
    store.pool.activate()
    assert (store.containers.mount("web") / "new").read_text() == "x"
    store.containers.unmount("web")
    store.pool.destroy()
    store.close()
    assert kernel_state() == before
    assert not (scratch / "store").exists()
    assert block.signature(disk) == ""


def test_trim_frees_blocks_of_the_data_and_no_other(scratch: Path, direct: Store) -> None:
    """Where the pool's blocks are on the disk is not where they are in the pool: the disk is a file that shows it."""
    oracle = written(direct, blocks=40)
    gone, node = raw_volume(direct, "gone")
    for number in range(512):
        rigs.write_block(node, number, rigs.pattern(3, number))
    direct.volumes.deactivate(gone)
    direct.volumes.removal.remove(gone)
    program("sync")
    before = block.allocated(scratch / "disk")
    direct.pool.trim()
    assert before - block.allocated(scratch / "disk") > 24 * MIB
    again(direct, oracle)


def test_everything_comes_back_after_a_reboot(direct: Store, tree: Path) -> None:
    direct.images.import_("image", tree)
    direct.containers.create("image", "web")
    (direct.containers.mount("web") / "kept").write_text("x")
    oracle = written(direct)
    before = tables(direct)
    reboot(direct)
    again(direct, oracle)
    assert tables(direct) == before
    assert (direct.containers.mount("web") / "kept").read_text() == "x"


def test_a_disk_that_is_not_there_after_a_reboot(
    make_disk: MakeDisk, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, other = make_disk(), make_disk(name="other")
    link = scratch / "link"
    link.symlink_to(disk)
    store = on_disk(scratch / "store", link)
    oracle = written(store)
    reboot(store)
    link.unlink()
    monkeypatch.setattr("dmthin.pool.backing._DEVICE_WAIT_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="did not appear"):
        store.pool.activate()
    link.symlink_to(other)
    with pytest.raises(DmthinError, match="holds no thin-pool metadata"):
        store.pool.activate()
    assert devices() == []
    link.unlink()
    link.symlink_to(disk)
    again(store, oracle)
    take_down(store)


def test_a_copied_store_does_not_touch_the_pool_of_the_other(direct: Store, scratch: Path) -> None:
    oracle = written(direct)
    direct.ledger.close()
    program("cp", "-a", str(direct.layout.root), str(scratch / "copy"))
    with Store(scratch / "copy") as copy:
        actions: tuple[Callable[[], object], ...] = (
            copy.pool.activate,
            copy.pool.deactivate,
            copy.pool.destroy,
            lambda: copy.pool.extend(data_size=1950 * MIB),
        )
        for action in actions:
            with pytest.raises(AlreadyExists, match="held by another store"):
                action()
    again(direct, oracle)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_disk_that_carries_data_is_refused_unless_forced(scratch: Path, disk: Path) -> None:
    program("mkfs.ext4", "-q", str(disk))
    with pytest.raises(AlreadyExists, match=r"carries data \(ext4\)"):
        on_disk(scratch / "store", disk)
    with pytest.raises(AlreadyExists, match="carries data"):
        on_disk(scratch / "store", disk, "dm.directlvm_device_force=false")
    assert not (scratch / "store").exists()
    take_down(on_disk(scratch / "store", disk, "dm.directlvm_device_force=true"))
    program("mkfs.ext4", "-q", "-F", str(disk))
    take_down(on_disk(scratch / "store", disk, force=True))
    take_down(on_disk(scratch / "store", disk))


def test_a_disk_in_use_is_refused_even_if_forced(scratch: Path, direct: Store) -> None:
    disk = Path(direct.ledger.store().data)
    with pytest.raises(InUse, match="in use"):
        on_disk(scratch / "second", disk, "dm.directlvm_device_force=true", force=True)
    direct.pool.deactivate()
    with pytest.raises(AlreadyExists, match="carries data"):
        on_disk(scratch / "second", disk)
    direct.pool.activate()
    assert not (scratch / "second").exists()


def test_what_is_no_disk_is_refused(scratch: Path, make_disk: MakeDisk) -> None:
    with pytest.raises(InvalidValue, match="not a block device"):
        on_disk(scratch / "store", scratch)
    with pytest.raises(InvalidValue, match="too small for a pool"):
        on_disk(scratch / "store", make_disk(2 * MIB))
    assert not (scratch / "store").exists()


def test_options_that_differ_later_are_refused(make_direct: MakeStore) -> None:
    store = make_direct("dm.thinp_percent=90", "dm.thinp_metapercent=2")
    root, disk = store.layout.root, store.ledger.store().data
    for options, words in (
        (["dm.thinp_percent=95%"], "dm.thinp_percent=95% differs from the 90% of this store: it is fixed"),
        (["dm.thinp_autoextend_threshold=70"], "differs from the 80% of this store"),
        (["dm.directlvm_device=/dev/null"], f"dm.directlvm_device=/dev/null differs from the {disk} of this store"),
        (["dm.directlvm_device_force=true"], "differs from the false"),
        (["dm.blocksize=64K"], "dm.blocksize=64K differs from the 512K"),
        (["dm.datadev=/dev/null"], "dm.datadev has no effect with dm.directlvm_device"),
    ):
        with pytest.raises(InvalidValue, match=words):
            Store(root, options)
    Store(root, [f"dm.directlvm_device={disk}", "dm.thinp_percent=90%", "dm.thinp_metapercent=2"]).close()


# --- growth ---------------------------------------------------------------------------------------------------------


def test_growth_within_the_regions(direct: Store, scratch: Path) -> None:
    oracle = written(direct)
    direct.pool.extend()
    assert sizes(direct) == (1945 * MIB + 512 * KIB, 20 * MIB)
    direct.pool.extend(data_size=1950 * MIB)
    direct.pool.extend(metadata_size=32 * MIB)
    assert sizes(direct) == (1950 * MIB, 32 * MIB)
    for request, words in (
        ({"data_size": 1988 * MIB}, "has room for only 1987M of data: grow the disk first"),
        ({"metadata_size": 62 * MIB}, "has room for only 61M of metadata: the rest of it is for the data"),
        ({"data_size": GIB}, "cannot shrink to 1G"),
    ):
        with pytest.raises(InvalidValue, match=words):
            direct.pool.extend(**request)
    direct.pool.extend(data_size=1987 * MIB, metadata_size=61 * MIB)
    assert sizes(direct) == (1987 * MIB, 61 * MIB)
    block.grow_sparse(scratch / "disk", 3 * GIB)
    grown = loop.find(scratch / "disk")
    assert grown is not None
    grown.refresh_size()
    direct.pool.extend(data_size=2500 * MIB)
    assert sizes(direct) == (2500 * MIB, 61 * MIB)
    reboot(direct)
    again(direct, oracle)
    assert sizes(direct) == (2500 * MIB, 61 * MIB)


def test_extension_at_the_threshold_under_a_writer(make_direct: MakeStore) -> None:
    store = make_direct(*SMALL_POOL, size=128 * MIB)
    assert sizes(store) == (32 * MIB, 2 * MIB)
    volume, node = raw_volume(store, "volume", 96 * MIB)
    seen = [32 * MIB]

    def extended_three_times() -> bool:
        if store.pool.extend_if_due():
            used, size = store.pool.status().data_used, sizes(store)[0]
            assert used * 100 >= 75 * seen[-1]
            seen.append(size)
        return len(seen) == 4

    with rigs.stomping(Oracle(node, 1536, random.Random(1))):
        until(extended_three_times)
    assert [round(after / before, 2) for before, after in pairwise(seen)] == [1.2, 1.2, 1.2]
    assert sizes(store)[1] == 2 * MIB
    store.volumes.deactivate(volume)


def test_extension_is_the_way_out_of_a_full_pool_until_the_disk_ends(make_direct: MakeStore) -> None:
    when_full = ("dm.thinp_autoextend_percent=100", "dm.thinp_autoextend_threshold=99%")
    store = make_direct(*SMALL_POOL, *when_full, size=128 * MIB)
    volume, node = raw_volume(store, "volume", 127 * MIB)
    limit = 120 * MIB
    assert store.pool.extend_if_due() is False
    number = 0
    for room in (32 * MIB, 64 * MIB, limit):
        assert sizes(store)[0] == room
        while number < room // (64 * KIB):
            rigs.write_block(node, number, rigs.pattern(9, number))
            number += 1
        if room == limit:
            break
        with rigs.writing(node, number) as pid:
            _await_full(store)
            with pytest.raises(NoDataSpace):
                raw_volume(store, "another")
            assert store.pool.extend_if_due() is True
            assert processes.outcome(pid) == 0
        number += 1
        assert store.pool.status().mode == "rw"
        assert store.pool.extend_if_due() is False
    assert store.pool.status().data_used == limit
    assert store.pool.extend_if_due() is False
    assert all(rigs.read_block(node, index) == rigs.pattern(9, index) for index in range(0, number, 7))
    store.volumes.deactivate(volume)
    store.volumes.removal.remove(volume)


def _await_full(store: Store) -> None:
    name = store.ledger.store().pool_name
    with IoctlDeviceMapper() as dm:
        while PoolStatus.parse(dm.status(name)).mode is not PoolMode.OUT_OF_DATA_SPACE:
            dm.wait(name, dm.info(name).event_number, 60)


def test_extension_is_the_way_out_of_full_metadata(make_direct: MakeStore) -> None:
    store = make_direct("dm.min_free_space=0%", size=128 * MIB)
    assert sizes(store) == (121 * MIB + 512 * KIB, 2 * MIB)
    oracle = written(store)
    with pytest.raises(NoMetadataSpace):
        exhaust(store, store.dm)
    assert store.pool.status().mode == "ro"
    assert store.pool.extend_if_due() is True
    report = store.pool.status()
    assert (report.mode, report.metadata_size) == ("rw", 615 * METADATA_BLOCK)
    assert store.pool.extend_if_due() is True
    forget_foreign_volumes(store)
    assert store.pool.extend_if_due() is False
    raw_volume(store, "another")
    again(store, oracle)


def test_extension_that_is_not_wanted(make_direct: MakeStore, store: Store) -> None:
    """Not with 0 percent, not on files, and not of a pool that is down."""
    direct = make_direct(*SMALL_POOL, "dm.thinp_autoextend_percent=0", size=128 * MIB)
    volume, node = raw_volume(direct, "volume")
    for number in range(32 * MIB // rigs.BLOCK):
        rigs.write_block(node, number, rigs.pattern(9, number))
    assert direct.pool.status().data_used == 32 * MIB
    assert direct.pool.extend_if_due() is False
    direct.volumes.deactivate(volume)
    direct.pool.deactivate()
    assert direct.pool.extend_if_due() is False
    assert store.pool.extend_if_due() is False
    direct.volumes.removal.remove(volume)


# --- dry runs -------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_pool_can_be_pasted(scratch: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(scratch / "store", capsys)
    plan = command.ok("pool", "create", "--storage-opt", f"dm.directlvm_device={disk}", "--dry-run").out
    lines = plan.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["dmsetup", "create", line.split()[2]] for line in lines[1:]]
    assert f"linear {disk} {61 * 2048}" in lines[1]
    assert f"linear {disk} 0" in lines[2]
    assert not (scratch / "store").exists()
    paste(plan)
    names = [line.split()[2] for line in lines[1:]]
    with IoctlDeviceMapper() as dm:
        assert PoolStatus.parse(dm.status(names[2])).data_total_blocks == 1945 * 2 + 1
    paste("\n".join(f"dmsetup remove {name}" for name in reversed(names)))


def test_the_steps_of_the_parts_can_be_pasted(direct: Store) -> None:
    """What a dry run shows of activation, growth and the way down is what the kernel then has."""
    oracle = written(direct)
    record = direct.ledger.store()
    data, meta = direct.layout.data(record), direct.layout.metadata(record)
    assert data.attach_plan() == ([], f"/dev/mapper/{record.prefix}-tdata")
    before = tables(direct)
    direct.volumes.deactivate(direct.ledger.ready("volume"))
    paste("\n".join([f"dmsetup remove {record.pool_name}", *data.detach_plan(), *meta.detach_plan()]))
    assert devices() == []
    assert data.detach_plan() == []
    paste("\n".join(line for backing in (data, meta) for line in backing.attach_plan()[0]))
    assert tables(direct) == before
    again(direct, oracle)
    paste("\n".join(data.grow_plan(1950 * MIB)))
    assert tables(direct)["tdata"].startswith(f"0 {1950 * 2048} linear")
    direct.pool.extend(data_size=1950 * MIB)
    again(direct, oracle)


# --- killed anywhere ------------------------------------------------------------------------------------------------


def test_a_store_killed_while_it_is_made_can_be_made_again(scratch: Path, disk: Path) -> None:
    root, before = scratch / "store", kernel_state()
    edges, killed = 0, True
    while killed:
        edges += 1
        killed = run_until_killed(edges, lambda: on_disk(root, disk).close())
        if killed and not store_exists(root):
            on_disk(root, disk).close()
        with Store(root) as store:
            store.pool.activate()
            check_store(store)
            store.pool.destroy()
        assert kernel_state() == before
        assert not root.exists()
        assert block.signature(disk) == ""
    print(f"create: killed at {edges - 1} edges")
    assert edges > 20


def test_a_store_killed_while_it_is_destroyed_is_gone_after_the_next_command(scratch: Path, disk: Path) -> None:
    root, before = scratch / "store", kernel_state()
    edges, killed = 0, True
    while killed:
        edges += 1
        on_disk(root, disk).close()
        killed = run_until_killed(edges, lambda: with_store(root, lambda store: store.pool.destroy()))
        if not store_exists(root):
            on_disk(root, disk).close()
        with Store(root) as store:
            store.pool.destroy()
        assert kernel_state() == before
        assert block.signature(disk) == ""
    assert edges > 10


def _extend(store: Store) -> object:
    now = store.pool.status()
    return store.pool.extend(data_size=now.data_size + MIB, metadata_size=now.metadata_size + MIB)


VERBS: dict[str, tuple[Callable[[Store], object], Callable[[Store], object]]] = {
    "activate": (lambda store: store.pool.deactivate(), lambda store: store.pool.activate()),
    "activate-after-a-reboot": (lambda store: _activate_and_reboot(store), lambda store: store.pool.activate()),
    "deactivate": (lambda store: store.pool.activate(), lambda store: store.pool.deactivate()),
    "extend": (lambda store: store.pool.activate(), _extend),
}


@pytest.mark.parametrize(
    ("verb", "then"),
    [*((verb, "next command") for verb in VERBS if verb != "extend"), ("extend", "reboot")],
    ids=lambda word: word,
)
def test_killed_anywhere_the_next_command_puts_all_right(direct: Store, verb: str, then: str) -> None:
    prepare, run = VERBS[verb]
    root, oracle = direct.layout.root, written(direct)
    direct.volumes.deactivate(direct.ledger.ready("volume"))
    direct.ledger.close()
    edges, killed = 0, True
    while killed:
        edges += 1
        with_store(root, prepare)
        killed = run_until_killed(edges, lambda: with_store(root, run))
        with Store(root) as store:
            if then == "reboot":
                _take_away_what_there_is(store)
            again(store, oracle)
            _kernel_and_ledger_agree(store)
    print(f"{verb}, {then}: killed at {edges - 1} edges")
    assert edges > 10


def _activate_and_reboot(store: Store) -> None:
    store.pool.activate()
    reboot(store)


def _take_away_what_there_is(store: Store) -> None:
    """A reboot, whatever devices there are."""
    record = store.ledger.store()
    for entry in mount.under(store.layout.root):
        mount.unmount(Path(entry.target))
    for name in (record.pool_name, f"{record.prefix}-tdata", f"{record.prefix}-tmeta"):
        if name in devices():
            program("dmsetup", "remove", name)


def _kernel_and_ledger_agree(store: Store) -> None:
    record = store.ledger.store()
    assert (record.data_target, record.metadata_target) == (None, None)
    assert sizes(store) == (record.data_size, record.metadata_size)
    lengths = {part: int(table.split()[1]) * 512 for part, table in tables(store).items()}
    assert lengths == {"tdata": record.data_size, "tmeta": record.metadata_size}
    assert sorted(devices()) == sorted([record.pool_name, f"{record.prefix}-tdata", f"{record.prefix}-tmeta"])
    assert not any(store.dm.info(name).suspended for name in devices())
