"""Docker's storage options: units, defaults, combinations; nothing is taken in silence."""

from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.pool import filesystem
from dmthin.store.options import StorageOptions, as_texts, parse_pairs, parse_volume_size
from dmthin.units import GIB, KIB, MIB


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
        (["dm.directlvm_device=/dev/sdb"], "dm.directlvm_device is not supported: .* dm.datadev"),
        (["dm.thinp_percent=95"], "dm.thinp_percent is not supported"),
        (["dm.thinp_autoextend_percent=20"], "dm.thinp_autoextend_percent is not supported: .*pool extend"),
        (["dm.libdm_log_level=7"], "dm.libdm_log_level is not supported"),
        (["dm.override_udev_sync_check=maybe"], "dm.override_udev_sync_check"),
    ],
)
def test_what_is_wrong_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        options(*texts)


def test_pairs_survive_the_ledger() -> None:
    pairs = parse_pairs(["dm.mkfsarg=-i", "dm.mkfsarg=size=512", "dm.mountopt=a", "dm.mountopt=b", "dm.fs=xfs"])
    assert parse_pairs(as_texts(pairs)) == pairs


def test_a_volumes_size() -> None:
    assert parse_volume_size([]) is None
    assert parse_volume_size(["size=0"]) is None
    assert parse_volume_size(["Size=20G"]) == 20 * GIB
    assert parse_volume_size(["size=1G", "size=300M"]) == 300 * MIB
    for text in ("size", "sizes=1G", "dm.basesize=1G", "size=x", "size=1000"):
        with pytest.raises(InvalidValue):
            parse_volume_size([text])
