"""Sizes as arguments: absolute (20G), more than now (+5G), or a share more (+20%)."""

import re
from dataclasses import dataclass

from dmthin.errors import InvalidValue
from dmthin.units import KIB, MIB, format_exact, format_size, parse_size, round_up

_LARGEST = 1 << 60
"""More than any file system or device here can have: 1 EiB."""
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?%")


@dataclass(frozen=True, slots=True)
class SizeRequest:
    """A size that may depend on the size now: `added` bytes, or `share` thousandths of a percent, or just `size`."""

    size: int | None = None
    added: int | None = None
    share: int | None = None

    @property
    def is_relative(self) -> bool:
        return self.size is None

    def resolve(self, now: int) -> int:
        """The bytes that are asked for; a share is rounded up to a whole MiB. Raises InvalidValue for far too many."""
        if self.size is not None:
            wanted = self.size
        elif self.added is not None:
            wanted = now + self.added
        else:
            wanted = round_up(now + now * (self.share or 0) // 100_000, MIB)
        if wanted > _LARGEST:
            raise InvalidValue(f"{format_size(wanted)} is more than there can be", hint="check the unit")
        return wanted


def parse_request(text: str, what: str) -> SizeRequest:
    """Read `20G`, `+5G` or `+20%`. Raises InvalidValue, which names `what`."""
    stripped = text.strip()
    if not stripped.startswith("+"):
        if stripped.endswith("%") or stripped.startswith("-"):
            hint = "sizes only grow; write 20G for a size, +5G or +20% for that much more than now"
            raise InvalidValue(f"{what}: {text!r} is not a size", hint=hint)
        return SizeRequest(size=parse_size(text, what))
    more = stripped[1:].strip()
    if share := _SHARE.fullmatch(more):
        return SizeRequest(share=round(float(share[1]) * 1000))
    return SizeRequest(added=parse_size(more, what))


def require_whole_kib(size: int, what: str) -> int:
    """The size if a file system can have it. Raises InvalidValue."""
    if size % KIB:
        raise InvalidValue(f"{what}: {size} is not a multiple of 1K", hint="give a rounder size")
    return size


def human(size: int) -> str:
    """Short text: `10G` where that is exact, else three digits as in `9.77G`."""
    exact = format_exact(size)
    digits = exact.rstrip("KMGTP")
    return exact if size and digits != exact and len(digits) <= 3 else format_size(size)
