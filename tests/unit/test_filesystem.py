"""The file systems: their commands, their limits, what their superblocks say."""

import struct
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.pool import filesystem
from dmthin.pool.filesystem import EXT4, XFS, FileSystem
from dmthin.units import MIB, TIB

FIXED = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["-E", FIXED]),
        (("-m", "1"), ["-E", FIXED, "-m", "1"]),
        (("-E", "stride=16"), ["-E", f"{FIXED},stride=16"]),
        (("-Estride=16", "-m", "1", "-E", "stripe_width=64"), ["-E", f"{FIXED},stride=16,stripe_width=64", "-m", "1"]),
        (("-E",), ["-E", f"{FIXED},"]),
    ],
)
def test_mkfs_of_ext4_gets_one_list_of_extended_options(arguments: tuple[str, ...], words: list[str]) -> None:
    assert EXT4.make_command("/dev/dm-1", arguments) == ["mkfs.ext4", "-q", *words, "/dev/dm-1"]


def test_mkfs_of_xfs_gets_the_arguments_as_they_are() -> None:
    assert XFS.make_command("/dev/dm-1", ("-E", "x")) == ["mkfs.xfs", "-q", "-K", "-E", "x", "/dev/dm-1"]


def test_the_command_that_grows_names_the_device_or_the_mount() -> None:
    assert EXT4.grow_command("/dev/dm-1", Path("/mnt/a b")) == ["resize2fs", "/dev/dm-1"]
    assert XFS.grow_command("/dev/dm-1", Path("/mnt/a b")) == ["xfs_growfs", "-d", "/mnt/a b"]


@pytest.mark.parametrize("option", ["lazy_itable_init", "lazy_journal_init", "assume_storage_prezeroed"])
@pytest.mark.parametrize("form", ["-E{}=1", "{}", "stride=4,{}=0"])
def test_a_base_of_ext4_is_always_written_in_full(option: str, form: str) -> None:
    with pytest.raises(InvalidValue, match=rf"dm\.mkfsarg: {option} cannot be chosen"):
        EXT4.check_arguments(("-q", form.format(option)))
    EXT4.check_arguments(("-m", "1"))


@pytest.mark.parametrize(("kind", "least", "most"), [(EXT4, 16 * MIB, 16 * TIB), (XFS, 300 * MIB, 1024 * TIB)])
def test_sizes_that_a_file_system_can_have(kind: FileSystem, least: int, most: int) -> None:
    for size in (least, most):
        kind.require_size(size)
    for size, words in ((least - 1024, "too small"), (most + 1024, "too large")):
        with pytest.raises(InvalidValue, match=words):
            kind.require_size(size)


def test_what_the_superblock_of_ext4_says(tmp_path: Path) -> None:
    head = bytearray(4096)
    struct.pack_into("<I", head, 1024, 1000)
    struct.pack_into("<I", head, 1024 + 0x10, 900)
    (tmp_path / "node").write_bytes(head)
    assert EXT4.inodes(tmp_path / "node") == 90
    assert EXT4.is_clean(tmp_path / "node")
    struct.pack_into("<I", head, 1024 + 0x60, 0x2C6)
    (tmp_path / "node").write_bytes(head)
    assert not EXT4.is_clean(tmp_path / "node")


def test_what_the_superblock_of_xfs_says(tmp_path: Path) -> None:
    head = bytearray(4096)
    struct.pack_into(">QQ", head, 128, 1000, 900)
    (tmp_path / "node").write_bytes(head)
    assert XFS.inodes(tmp_path / "node") == 97
    assert not XFS.is_clean(tmp_path / "node")


def test_a_file_system_that_is_not_known() -> None:
    assert filesystem.by_name("xfs") is XFS
    with pytest.raises(InvalidValue, match=r"dm\.fs: 'zfs' is not supported: use ext4 or xfs"):
        filesystem.by_name("zfs")
