"""Docker's storage options: units, defaults, combinations; nothing is taken in silence."""

from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from dmthin.errors import InvalidValue
from dmthin.kernel.thin import MAX_METADATA_SIZE
from dmthin.pool import filesystem
from dmthin.pool.diskpart import Division, divide
from dmthin.store.config.direct_lvm import DIRECT_OPTIONS, DirectLvm
from dmthin.store.config.options import POOL_OPTIONS, StorageOptions, as_texts, parse_pairs, parse_volume_size
from dmthin.units import GIB, KIB, MIB, TIB


def options(*texts: str) -> StorageOptions:
    return StorageOptions.from_pairs(parse_pairs(texts))


def test_the_defaults_are_dockers() -> None:
    default = options()
    assert default == StorageOptions()
    assert (default.data_size, default.metadata_size) == (100 * GIB, 2 * GIB)
    assert (default.base_size, default.block_size) == (10 * GIB, 64 * KIB)
    assert (default.min_free_percent, default.discard) == (10, True)


def test_every_option_is_read() -> None:
    given = options(
        "dm.basesize=20G",
        "dm.loopdatasize=1T",
        "dm.loopmetadatasize=4GB",
        "DM.FS=xfs",
        "dm.mkfsarg=-i",
        "dm.mkfsarg=size=512",
        "dm.mountopt=nodiratime",
        "dm.mountopt=noatime",
        "dm.blocksize=512K",
        "dm.blkdiscard=false",
        "dm.min_free_space=5%",
        "dm.use_deferred_removal=false",
        "dm.use_deferred_deletion=false",
        "dm.xfs_nospace_max_retries=0",
        "dm.override_udev_sync_check=true",
    )
    assert given == StorageOptions(
        base_size=20 * GIB,
        data_size=1024 * GIB,
        metadata_size=4 * GIB,
        file_system=filesystem.XFS,
        mkfs_arguments=("-i", "size=512"),
        mount_options="nodiratime,noatime",
        block_size=512 * KIB,
        discard=False,
        min_free_percent=5,
        deferred_removal=False,
        deferred_deletion=False,
        xfs_retries=0,
    )


def test_sizes_are_rounded_up() -> None:
    given = options("dm.basesize=300000001", "dm.loopdatasize=1000000001", "dm.loopmetadatasize=16777217")
    assert (given.base_size, given.data_size, given.metadata_size) == (300_003_328, 1_000_013_824, 16 * MIB + 4096)
    assert options("dm.loopdatasize=1000000001", "dm.blocksize=1M").data_size == 954 * MIB
    assert parse_volume_size(["size=1000000000"]) == 1_000_001_536


def test_the_last_of_a_repeated_option_wins() -> None:
    assert options("dm.basesize=1G", "dm.BASESIZE = 2G").base_size == 2 * GIB


def test_devices_turn_discards_off_unless_they_are_asked_for() -> None:
    assert options("dm.datadev=/dev/sdb").discard is False
    assert options("dm.datadev=/dev/sdb", "dm.blkdiscard=1").discard is True
    assert options("dm.thinpooldev=/dev/mapper/vg-pool").thin_pool_device == "vg-pool"
    assert options("dm.datadev=/dev/sdb", "dm.metadatadev=/dev/sdc").metadata_device == Path("/dev/sdc")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["dm.basesize"], "'dm.basesize' has no value"),
        (["dm.basesze=1G"], "unknown storage option 'dm.basesze': did you mean dm.basesize"),
        (["overlay2.size=1G"], "unknown storage option"),
        (["dm.basesize=big"], "dm.basesize: 'big' is not a size"),
        (["dm.basesize=1M"], "1M is too small for ext4"),
        (["dm.fs=xfs", "dm.basesize=100M"], "100M is too small for xfs"),
        (["dm.fs=btrfs"], "dm.fs: 'btrfs' is not supported: use ext4 or xfs"),
        (["dm.blocksize=100K"], "dm.blocksize: 100K is no block size"),
        (["dm.blocksize=2G"], "dm.blocksize: 2G is no block size"),
        (["dm.loopmetadatasize=20G"], "dm.loopmetadatasize: the kernel uses no more"),
        (["dm.loopmetadatasize=1M"], "dm.loopmetadatasize: too small"),
        (["dm.min_free_space=10"], "dm.min_free_space"),
        (["dm.min_free_space=100%"], "dm.min_free_space"),
        (["dm.use_deferred_removal=false"], "dm.use_deferred_deletion needs dm.use_deferred_removal"),
        (["dm.xfs_nospace_max_retries=-1"], "dm.xfs_nospace_max_retries: '-1' is not a count"),
        (["dm.datadev=sdb"], "dm.datadev: 'sdb' is not an absolute path"),
        (["dm.datadev=/dev/sdb", "dm.loopdatasize=1G"], "dm.loopdatasize has no effect with dm.datadev"),
        (["dm.thinpooldev=p", "dm.blocksize=128K"], "dm.blocksize has no effect with dm.thinpooldev"),
        (["dm.libdm_log_level=1"], "dm.libdm_log_level: 1 is out of range: give 2 to 7"),
        (["dm.libdm_log_level=8"], "dm.libdm_log_level: 8 is out of range"),
        (["dm.libdm_log_level=debug"], "dm.libdm_log_level: 'debug' is not a count"),
        (["dm.override_udev_sync_check=maybe"], "dm.override_udev_sync_check"),
    ],
)
def test_what_is_wrong_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        options(*texts)


# --- direct-lvm -----------------------------------------------------------------------------------------------------

DISK = "dm.directlvm_device=/dev/sdb"


def direct(*texts: str) -> DirectLvm:
    found = options(DISK, *texts).direct
    assert found is not None
    return found


def test_direct_lvm_has_dockers_defaults() -> None:
    given = options(DISK)
    assert given.direct == DirectLvm(Path("/dev/sdb"), False, 95, 1, 80, 20)
    assert (given.block_size, given.discard) == (512 * KIB, False)
    assert options().direct is None
    assert options(DISK, "dm.blocksize=64K", "dm.blkdiscard=true").block_size == 64 * KIB
    assert options(DISK, "dm.blkdiscard=true").discard is True


def test_every_option_of_direct_lvm_is_read() -> None:
    given = direct(
        "dm.directlvm_device_force=true",
        "dm.thinp_percent=80%",
        "dm.thinp_metapercent=2",
        "dm.thinp_autoextend_threshold=70",
        "dm.thinp_autoextend_percent=100%",
    )
    assert given == DirectLvm(Path("/dev/sdb"), True, 80, 2, 70, 100)
    assert given.extends
    assert direct("dm.thinp_percent=99", "dm.thinp_metapercent=1%").data_percent == 99


def test_when_direct_lvm_does_not_extend() -> None:
    assert not direct("dm.thinp_autoextend_threshold=100").extends
    assert not direct("dm.thinp_autoextend_percent=0").extends


def test_an_empty_device_is_none() -> None:
    assert options("dm.directlvm_device=", "dm.directlvm_device_force=false").direct is None


def test_the_options_of_direct_lvm_stay_as_they_are() -> None:
    given = options(DISK, "dm.thinp_autoextend_threshold=70")
    assert set(DIRECT_OPTIONS) < set(POOL_OPTIONS)
    texts = [given.text_of(key) for key in DIRECT_OPTIONS]
    assert texts == ["/dev/sdb", "false", "95%", "1%", "70%", "20%"]
    assert [options().text_of(key) for key in DIRECT_OPTIONS] == [""] * 6


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["dm.directlvm_device=sdb"], "dm.directlvm_device: 'sdb' is not an absolute path"),
        (["dm.directlvm_device_force=yes", DISK], "dm.directlvm_device_force: 'yes' is neither"),
        (["dm.directlvm_device_force=true"], "dm.directlvm_device_force has no effect without dm.directlvm_device"),
        (["dm.thinp_percent=95"], "dm.thinp_percent has no effect without dm.directlvm_device: name the disk"),
        (["dm.thinp_metapercent=1"], "dm.thinp_metapercent has no effect without"),
        (["dm.thinp_autoextend_threshold=80"], "dm.thinp_autoextend_threshold has no effect without"),
        (["dm.thinp_autoextend_percent=20"], "dm.thinp_autoextend_percent has no effect without"),
        ([DISK, "dm.thinp_percent=95"], "dm.thinp_percent needs dm.thinp_metapercent: give both, or neither"),
        ([DISK, "dm.thinp_metapercent=1"], "dm.thinp_metapercent needs dm.thinp_percent"),
        ([DISK, "dm.thinp_percent=99", "dm.thinp_metapercent=2"], "are 101% together: give no more than 100%"),
        ([DISK, "dm.thinp_percent=100", "dm.thinp_metapercent=1"], "dm.thinp_percent: '100' is not a percentage below"),
        ([DISK, "dm.thinp_percent=0", "dm.thinp_metapercent=1"], "dm.thinp_percent: '0' is too little: give at least"),
        ([DISK, "dm.thinp_percent=9x", "dm.thinp_metapercent=1"], "dm.thinp_percent: '9x' is not a percentage"),
        ([DISK, "dm.thinp_percent=90", "dm.thinp_metapercent=-1"], "dm.thinp_metapercent: '-1' is not a percentage"),
        ([DISK, "dm.thinp_autoextend_threshold=101"], "dm.thinp_autoextend_threshold: '101' is not a percentage below"),
        ([DISK, "dm.thinp_autoextend_threshold=0%"], "dm.thinp_autoextend_threshold: '0%' is too little"),
        ([DISK, "dm.thinp_autoextend_percent=101"], "dm.thinp_autoextend_percent: '101' is not a percentage below"),
        ([DISK, "dm.thinpooldev=p"], "dm.directlvm_device has no effect with dm.thinpooldev"),
        ([DISK, "dm.datadev=/dev/sdc"], "dm.datadev has no effect with dm.directlvm_device: give one of them"),
        ([DISK, "dm.metadatadev=/dev/sdc"], "dm.metadatadev has no effect with dm.directlvm_device"),
        ([DISK, "dm.loopdatasize=1G"], "dm.loopdatasize has no effect with dm.directlvm_device"),
        ([DISK, "dm.loopmetadatasize=1G"], "dm.loopmetadatasize has no effect with dm.directlvm_device"),
        ([DISK, "dm.blocksize=100K"], "dm.blocksize: 100K is no block size"),
    ],
)
def test_what_is_wrong_with_direct_lvm_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        options(*texts)


@pytest.mark.parametrize("level", ["2", "7"])
def test_libdms_log_level_has_no_effect_and_says_so(level: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "dmthin"):
        assert options(f"dm.libdm_log_level={level}") == StorageOptions()
    assert caplog.messages == ["dm.libdm_log_level has no effect: dmthin uses no libdm"]


def test_a_disk_is_divided() -> None:
    """What is left is halved, but the metadata never gets more than four times what it begins with."""
    assert divide(100 * GIB, 95, 1, 512 * KIB) == Division(3 * GIB, GIB, 95 * GIB)
    assert divide(100 * GIB, 50, 1, 512 * KIB) == Division(4 * GIB, GIB, 50 * GIB)
    assert divide(100 * GIB, 99, 1, 512 * KIB) == Division(GIB, GIB, 99 * GIB)
    assert divide(100 * GIB, 95, 1, GIB) == Division(3 * GIB, GIB, 95 * GIB)
    small = divide(64 * MIB, 95, 1, 512 * KIB)
    assert (small.metadata_end, small.metadata_size) == (4 * MIB, 2 * MIB)
    assert small.data_size == 60 * MIB


def test_metadata_gets_no_more_than_the_kernel_uses() -> None:
    huge = divide(4 * TIB, 95, 1, 512 * KIB)
    assert MAX_METADATA_SIZE - MIB < huge.metadata_size <= MAX_METADATA_SIZE
    assert MAX_METADATA_SIZE <= huge.metadata_end < MAX_METADATA_SIZE + MIB
    assert huge.data_size == 4 * TIB * 95 // 100 // (512 * KIB) * (512 * KIB)


@hypothesis.given(
    size=st.integers(MIB, 64 * TIB),
    percents=st.tuples(st.integers(1, 99), st.integers(1, 99)).filter(lambda pair: sum(pair) <= 100),
    units=st.integers(1, 16384),
)
def test_every_division_fits_its_disk(size: int, percents: tuple[int, int], units: int) -> None:
    block_size = units * 64 * KIB
    try:
        made = divide(size, *percents, block_size)
    except InvalidValue:
        assert size < 200 * (block_size + 4 * MIB)
        return
    assert 2 * MIB <= made.metadata_size <= min(made.metadata_end, MAX_METADATA_SIZE)
    assert made.metadata_end % MIB == 0 or made.metadata_end % block_size == 0
    assert 0 < made.data_size <= size - made.metadata_end
    assert made.data_size % block_size == 0


@pytest.mark.parametrize("size", [MIB, 2 * MIB, 3 * MIB])
def test_a_disk_that_is_too_small(size: int) -> None:
    with pytest.raises(InvalidValue, match="too small for a pool"):
        divide(size, 95, 1, 512 * KIB)


def test_pairs_survive_the_ledger() -> None:
    pairs = parse_pairs(["dm.mkfsarg=-i", "dm.mkfsarg=size=512", "dm.mountopt=a", "dm.mountopt=b", "dm.fs=xfs"])
    assert parse_pairs(as_texts(pairs)) == pairs


def test_a_volumes_size() -> None:
    assert parse_volume_size([]) is None
    assert parse_volume_size(["size=0"]) is None
    assert parse_volume_size(["Size=20G"]) == 20 * GIB
    assert parse_volume_size(["size=1G", "size=300M"]) == 300 * MIB
    for text in ("size", "sizes=1G", "dm.basesize=1G", "size=x"):
        with pytest.raises(InvalidValue):
            parse_volume_size([text])
