"""Sizes, percentages and truth values as people and Docker write them. In dmthin a size is an int of bytes."""

import re

from dmthin.errors import InvalidValue

SECTOR = 512
"""Bytes of a device-mapper sector."""

METADATA_BLOCK = 4096
"""Bytes of a block of thin-pool metadata."""

FILE_SYSTEM_BLOCK = 4096
"""Bytes of a block of ext4 and XFS: what a size leaves over beyond whole blocks, no file system uses."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_TOO_LARGE = 1 << 63
_UNITS = "kmgtp"
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[kmgtp](?:i?b)?|b)?", re.IGNORECASE)
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_size(text: str, what: str = "size") -> int:
    """Return the bytes of a size such as `10G`, `10GiB`, `1.5 gb` or `4096`. Raise InvalidValue, which names `what`.

    The multiples are binary and the grammar is that of Docker's `--storage-opt` (go-units RAMInBytes): fractions
    and one space are allowed.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidValue(f"{what}: {text!r} is not a size", hint="write a number and a unit, such as 20G or 512M")
    unit = (match["unit"] or "b")[0].lower()
    power = 0 if unit == "b" else _UNITS.index(unit) + 1
    whole, _, fraction = match["number"].partition(".")
    scaled = int(whole + fraction) * 1024**power
    size = int(scaled // 10 ** len(fraction))
    if size >= _TOO_LARGE:
        raise InvalidValue(f"{what}: {text!r} is more than any device can have", hint="give a size below 8192P")
    return size


def parse_percent(text: str, what: str, *, below: int = 100, sign_required: bool = False) -> int:
    """Return the whole number of `10%`, which must be less than `below`. Raise InvalidValue, which names `what`.

    The sign may be left out unless it is required.
    """
    match = re.fullmatch(r"([0-9]{1,3})(%?)", text.strip())
    if match is None or (sign_required and not match[2]) or int(match[1]) >= below:
        raise InvalidValue(f"{what}: {text!r} is not a percentage below {below}", hint="write it as 10%")
    return int(match[1])


def parse_bool(text: str, what: str) -> bool:
    """Return a truth value in Go's spelling (strconv.ParseBool), as Docker's options have it. Raise InvalidValue."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidValue(f"{what}: {text!r} is neither true nor false", hint="write true or false")


def format_size(size: int) -> str:
    """Return a size as a short text in binary multiples, with three digits: `0`, `512B`, `64.0K`, `9.77G`."""
    if abs(size) < KIB:
        return f"{size}B" if size else "0"
    value = float(size)
    for unit in "KMGTP":
        value /= 1024
        if abs(value) < 999.5 or unit == "P":
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{unit}"


def format_exact(size: int) -> str:
    """Return a size in the largest unit that leaves no remainder, so that `parse_size` reads it back: `10G`."""
    for power, unit in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def format_percent(part: int, whole: int) -> str:
    """Return `part` of `whole` in percent with two decimals, `-` if `whole` is 0."""
    return f"{100 * part / whole:.2f}%" if whole else "-"


def volume_size(size: int) -> int:
    """Return the bytes of a volume that was asked for with `size` bytes: rounded up to blocks of a file system.

    Orchestrators ask for 1G as 1000000000, or for a byte more than 1Gi, and expect no less than that.
    """
    return round_up(size, FILE_SYSTEM_BLOCK)


def round_up(value: int, step: int) -> int:
    """Return the least multiple of `step` that is not less than `value`."""
    return -(-value // step) * step
