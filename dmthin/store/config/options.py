"""Storage options with the names, units and meaning of Docker's devicemapper driver: `dm.basesize=20G`, `size=20G`.

An option that is unknown, or contradicts another, is refused by name and never ignored. Sizes are bytes here, rounded
up to what has whole blocks: of a file system, of the pool, of its metadata.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dmthin import units
from dmthin.errors import InvalidValue
from dmthin.kernel.thin import MAX_BLOCK_SIZE, MAX_METADATA_SIZE, MIN_BLOCK_SIZE
from dmthin.pool import filesystem
from dmthin.pool.filesystem import FileSystem
from dmthin.store.config import direct_lvm
from dmthin.store.config.direct_lvm import DIRECT_OPTIONS, DirectLvm
from dmthin.store.config.reader import OptionReader
from dmthin.units import GIB, KIB, format_exact

logger = logging.getLogger(__name__)

_LOOP_OPTIONS = ("dm.loopdatasize", "dm.loopmetadatasize")
_DEVICE_OPTIONS = ("dm.datadev", "dm.metadatadev")
POOL_OPTIONS = (*_LOOP_OPTIONS, *_DEVICE_OPTIONS, "dm.thinpooldev", "dm.blocksize", *DIRECT_OPTIONS)
"""Options that shape the pool when it is made, and cannot be changed later."""

_VOLUME_OPTIONS = (
    "dm.basesize",
    "dm.fs",
    "dm.mkfsarg",
    "dm.mountopt",
    "dm.blkdiscard",
    "dm.min_free_space",
    "dm.use_deferred_removal",
    "dm.use_deferred_deletion",
    "dm.xfs_nospace_max_retries",
    "dm.override_udev_sync_check",
    "dm.libdm_log_level",
)
KNOWN = (*POOL_OPTIONS, *_VOLUME_OPTIONS)


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """The options of a store, checked one by one and together; the defaults are Docker's, but for ext4."""

    base_size: int = 10 * GIB
    data_size: int = 100 * GIB
    metadata_size: int = 2 * GIB
    file_system: FileSystem = filesystem.EXT4
    mkfs_arguments: tuple[str, ...] = ()
    mount_options: str = ""
    data_device: Path | None = None
    metadata_device: Path | None = None
    thin_pool_device: str = ""
    block_size: int = 64 * KIB
    discard: bool = True
    min_free_percent: int = 10
    deferred_removal: bool = True
    deferred_deletion: bool = True
    xfs_retries: int | None = None
    direct: DirectLvm | None = None

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, str]) -> "StorageOptions":
        """Return the options of pairs as `parse_pairs` returns them. Raises InvalidValue, which names the option."""
        given, default, direct = OptionReader(pairs), cls(), direct_lvm.read(pairs)
        device = given.text("dm.datadev") or given.text("dm.thinpooldev") or direct
        block_size = given.size("dm.blocksize", direct_lvm.BLOCK_SIZE if direct else default.block_size)
        options = cls(
            base_size=units.volume_size(given.size("dm.basesize", default.base_size)),
            data_size=units.round_up(given.size("dm.loopdatasize", default.data_size), max(block_size, units.SECTOR)),
            metadata_size=units.round_up(
                given.size("dm.loopmetadatasize", default.metadata_size), units.METADATA_BLOCK
            ),
            file_system=filesystem.by_name(given.text("dm.fs") or default.file_system.name),
            mkfs_arguments=tuple(filter(None, given.text("dm.mkfsarg").split("\0"))),
            mount_options=given.text("dm.mountopt"),
            data_device=given.path("dm.datadev"),
            metadata_device=given.path("dm.metadatadev"),
            thin_pool_device=given.text("dm.thinpooldev").removeprefix("/dev/mapper/"),
            block_size=block_size,
            # A discard on a real disk is dear, and pointless where the pool does not pass it down: Docker's default.
            discard=given.truth("dm.blkdiscard", not device),
            min_free_percent=given.percent("dm.min_free_space", default.min_free_percent, sign_required=True),
            deferred_removal=given.truth("dm.use_deferred_removal", default.deferred_removal),
            deferred_deletion=given.truth("dm.use_deferred_deletion", default.deferred_deletion),
            xfs_retries=given.count("dm.xfs_nospace_max_retries"),
            direct=direct,
        )
        given.truth("dm.override_udev_sync_check", False)
        if given.count("dm.libdm_log_level", 2, 7) is not None:
            logger.debug("dm.libdm_log_level has no effect: dmthin uses no libdm")
        options._check(pairs)
        return options

    def text_of(self, key: str) -> str:
        """Return one of POOL_OPTIONS as text, for comparison and messages; empty if it is not set."""
        match key:
            case "dm.loopdatasize":
                return format_exact(self.data_size)
            case "dm.loopmetadatasize":
                return format_exact(self.metadata_size)
            case "dm.datadev":
                return str(self.data_device or "")
            case "dm.metadatadev":
                return str(self.metadata_device or "")
            case "dm.thinpooldev":
                return self.thin_pool_device
            case "dm.blocksize":
                return format_exact(self.block_size)
        return direct_lvm.text_of(self.direct, key)

    def _check(self, pairs: Mapping[str, str]) -> None:
        """Raise InvalidValue for options that contradict each other, or that the kernel or mkfs would refuse."""
        if self.thin_pool_device:
            for key in POOL_OPTIONS:
                if key in pairs and key != "dm.thinpooldev":
                    raise InvalidValue(f"{key} has no effect with dm.thinpooldev", hint="give one of them")
        for device, loop in zip(_DEVICE_OPTIONS, _LOOP_OPTIONS, strict=True):
            if device in pairs and loop in pairs:
                raise InvalidValue(f"{loop} has no effect with {device}", hint="give one of them")
        if not MIN_BLOCK_SIZE <= self.block_size <= MAX_BLOCK_SIZE or self.block_size % MIN_BLOCK_SIZE:
            raise InvalidValue(
                f"dm.blocksize: {format_exact(self.block_size)} is no block size of a thin pool",
                hint="use a multiple of 64K, from 64K to 1G",
            )
        if self.metadata_size > MAX_METADATA_SIZE:
            raise InvalidValue("dm.loopmetadatasize: the kernel uses no more than 15.9G", hint="give at most 15G")
        if self.metadata_size < 2 * units.MIB:
            raise InvalidValue("dm.loopmetadatasize: too small for a thin pool", hint="give at least 2M")
        if self.data_size < self.block_size:
            raise InvalidValue("dm.loopdatasize: smaller than one block of the pool", hint="give at least dm.blocksize")
        if self.deferred_deletion and not self.deferred_removal:
            raise InvalidValue(
                "dm.use_deferred_deletion needs dm.use_deferred_removal", hint="set both to the same value"
            )
        self.file_system.require_size(self.base_size)
        self.file_system.check_arguments(self.mkfs_arguments)


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Return `key=value` texts as pairs, by Docker's rules: the key's case does not matter, the last value wins.

    Values of dm.mkfsarg are joined by NUL instead, and those of dm.mountopt by commas. Raises InvalidValue for an
    unknown option, with the nearest known name.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        key = key.lower()
        if not equals:
            raise InvalidValue(f"the storage option {text!r} has no value", hint="write it as key=value")
        if key not in KNOWN:
            import difflib

            near = difflib.get_close_matches(key, KNOWN, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KNOWN)}"
            raise InvalidValue(f"unknown storage option {key!r}", hint=hint)
        if key == "dm.mkfsarg" and key in pairs:
            value = f"{pairs[key]}\0{value}"
        elif key == "dm.mountopt" and key in pairs:
            value = f"{pairs[key]},{value}"
        pairs[key] = value
    return pairs


def as_texts(pairs: Mapping[str, str]) -> tuple[str, ...]:
    """Return the pairs as texts that `parse_pairs` reads back."""
    return tuple(f"{key}={part}" for key, value in pairs.items() for part in value.split("\0"))


def parse_volume_size(texts: Iterable[str]) -> int | None:
    """Return the bytes of `size=20G` among the storage options of one volume, None if it is not given or 0.

    They are rounded up as `units.volume_size` says. Docker knows no other key here. Raises InvalidValue.
    """
    size = None
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or key.lower() != "size":
            raise InvalidValue(f"unknown storage option {text!r} for a volume", hint="only size=SIZE is known")
        size = units.volume_size(units.parse_size(value, "size")) or None
    return size
