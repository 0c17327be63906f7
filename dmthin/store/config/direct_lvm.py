"""Docker's direct-lvm options: one disk for the pool, divided and extended automatically, here without LVM."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import InvalidValue
from dmthin.store.config.reader import OptionReader
from dmthin.units import KIB

DEVICE = "dm.directlvm_device"
_FORCE = "dm.directlvm_device_force"
_SHARES = ("dm.thinp_percent", "dm.thinp_metapercent")
DIRECT_OPTIONS = (DEVICE, _FORCE, *_SHARES, "dm.thinp_autoextend_threshold", "dm.thinp_autoextend_percent")

BLOCK_SIZE = 512 * KIB
"""Bytes of a pool's block where dm.blocksize does not say: the chunk that Docker asked lvconvert for."""

_CONTRADICTIONS = ("dm.datadev", "dm.metadatadev", "dm.loopdatasize", "dm.loopmetadatasize")


@dataclass(frozen=True, slots=True)
class DirectLvm:
    """A disk that holds nothing but the pool; the defaults are Docker's.

    Data and metadata begin with `data_percent` and `metadata_percent` of it. At `threshold` percent of use they are
    extended by `extend_percent` of their size; a threshold of 100 or an extension of 0 means never. `force` overwrites
    what the disk carries.
    """

    device: Path
    force: bool = False
    data_percent: int = 95
    metadata_percent: int = 1
    threshold: int = 80
    extend_percent: int = 20

    @property
    def extends(self) -> bool:
        """Whether the pool is extended automatically."""
        return self.threshold < 100 and self.extend_percent > 0


def read(pairs: Mapping[str, str]) -> DirectLvm | None:
    """Return the direct-lvm options of a store, None without a device. Raises InvalidValue as Docker does."""
    given = OptionReader(pairs)
    data_percent = given.percent("dm.thinp_percent", 95, least=1)
    metadata_percent = given.percent("dm.thinp_metapercent", 1, least=1)
    force = given.truth(_FORCE, False)
    threshold = given.percent("dm.thinp_autoextend_threshold", 80, least=1, below=101)
    extend_percent = given.percent("dm.thinp_autoextend_percent", 20, below=101)
    device = given.path(DEVICE)
    if device is None:
        for key in DIRECT_OPTIONS:
            if given.text(key) and (key != _FORCE or force):
                raise InvalidValue(f"{key} has no effect without {DEVICE}", hint=f"name the disk as {DEVICE}")
        return None
    for key in _CONTRADICTIONS:
        if key in pairs:
            raise InvalidValue(f"{key} has no effect with {DEVICE}", hint="give one of them")
    for key, other in (_SHARES, _SHARES[::-1]):
        if key in pairs and other not in pairs:
            raise InvalidValue(f"{key} needs {other}", hint="give both, or neither")
    if data_percent + metadata_percent > 100:
        total = data_percent + metadata_percent
        raise InvalidValue(f"{' and '.join(_SHARES)} are {total}% together", hint="give no more than 100%")
    return DirectLvm(device, force, data_percent, metadata_percent, threshold, extend_percent)


def text_of(direct: DirectLvm | None, key: str) -> str:
    """Return one of DIRECT_OPTIONS as text, for comparison and messages; empty without a device."""
    if direct is None:
        return ""
    texts = (
        str(direct.device),
        str(direct.force).lower(),
        f"{direct.data_percent}%",
        f"{direct.metadata_percent}%",
        f"{direct.threshold}%",
        f"{direct.extend_percent}%",
    )
    return texts[DIRECT_OPTIONS.index(key)]
