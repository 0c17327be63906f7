"""Sizes in arguments: absolute (20G), or an increment in bytes (+5G) or percent (+20%)."""

import re
from dataclasses import dataclass

from dmthin.errors import InvalidValue
from dmthin.units import MIB, format_exact, format_size, parse_size, round_up

_LARGEST = 1 << 60
"""1 EiB, more than the maximum of any file system or device supported here."""
OUT_OF_PROPORTION = 100
"""A volume that is larger than the pool's data by more than this factor is confirmed first: 12T may stand for 12G."""

_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?%")


@dataclass(frozen=True, slots=True)
class SizeRequest:
    """A requested size: `size` in bytes, or an increment of `added` bytes or of `share` thousandths of a percent."""

    size: int | None = None
    added: int | None = None
    share: int | None = None

    def resolve(self, now: int) -> int:
        """Return the requested bytes, given the size `now`; a share is rounded up to whole MiB. Raise InvalidValue."""
        if self.size is not None:
            wanted = self.size
        elif self.added is not None:
            wanted = now + self.added
        else:
            wanted = round_up(now + now * (self.share or 0) // 100_000, MIB)
        if wanted > _LARGEST:
            raise InvalidValue(f"{format_size(wanted)} is more than any volume can have", hint="check the unit")
        return wanted


def parse_request(text: str, what: str) -> SizeRequest:
    """Parse `20G`, `+5G` or `+20%`. Raise InvalidValue, which names `what`."""
    stripped = text.strip()
    if not stripped.startswith("+"):
        if stripped.endswith("%") or stripped.startswith("-"):
            hint = "sizes can only grow; use 20G for a size, +5G or +20% for an increment"
            raise InvalidValue(f"{what}: {text!r} is not a size", hint=hint)
        return SizeRequest(size=parse_size(text, what))
    more = stripped[1:].strip()
    if share := _SHARE.fullmatch(more):
        return SizeRequest(share=round(float(share[1]) * 1000))
    return SizeRequest(added=parse_size(more, what))


def human(size: int) -> str:
    """Return a size as short text: `10G` if that is exact, otherwise three digits as in `9.77G`."""
    exact = format_exact(size)
    digits = exact.rstrip("KMGTP")
    return exact if size and digits != exact and len(digits) <= 3 else format_size(size)
