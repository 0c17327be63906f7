"""The file systems: their commands, their limits, what their superblocks say."""

import struct
import subprocess
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.pool import filesystem
from dmthin.pool.filesystem import EXT4, XFS, FileSystem
from dmthin.units import GIB, MIB, TIB

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


def test_the_commands_that_grow_by_a_part() -> None:
    assert EXT4.grow_command("/dev/dm-1", Path("/mnt"), 64 * MIB) == ["resize2fs", "/dev/dm-1", "65536K"]


def ext4(tmp_path: Path, *arguments: str) -> Path:
    """Make an ext4 of 64M in a file."""
    path = tmp_path / "ext4"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", *arguments, path], check=True)
    return path


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (("-b", "1024", "-g", "1024", "-O", "64bit"), 16368 * MIB),
        (("-b", "1024", "-g", "1024", "-O", "^64bit"), 32736 * MIB),
        (("-b", "4096", "-g", "512", "-O", "64bit"), 64 * GIB),
        (("-b", "1024", "-O", "64bit"), (8192 - 1) * 16 * 8 * MIB),
        (("-b", "4096", "-O", "64bit"), 16 * TIB),
        (("-b", "4096", "-O", "64bit", "-N", "32768"), 131071 * 128 * MIB),
        (("-b", "4096", "-O", "^64bit"), 16 * TIB - 4096),
    ],
)
def test_how_far_ext4_grows(tmp_path: Path, arguments: tuple[str, ...], limit: int) -> None:
    """The limits of resize2fs 1.47 and Linux 6.1, met exactly with groups of 1024 and 512 blocks."""
    node = ext4(tmp_path, *arguments)
    assert EXT4.growth_limit(node)[0] == limit
    EXT4.require_growth(node, limit)
    with pytest.raises(InvalidValue, match=r"too large for this ext4: with its blocks of [14]K it grows to at most"):
        EXT4.require_growth(node, limit + 4096)
    assert EXT4.size(str(node), tmp_path) == 64 * MIB


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
