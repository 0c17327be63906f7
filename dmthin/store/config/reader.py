"""Typed access to storage options by their keys. Every method raises InvalidValue, which names the option."""

from collections.abc import Mapping
from pathlib import Path

from dmthin import units
from dmthin.errors import InvalidValue


class OptionReader:
    """Reads the pairs of a store's options. An option that is not given has its default."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = pairs

    def text(self, key: str) -> str:
        """Return the text of an option, empty without it."""
        return self._pairs.get(key, "")

    def path(self, key: str) -> Path | None:
        """Return an absolute path, None without it. Raises InvalidValue for a relative one."""
        if not (text := self.text(key)):
            return None
        if not text.startswith("/"):
            raise InvalidValue(f"{key}: {text!r} is not an absolute path", hint="name a device such as /dev/sdb")
        return Path(text)

    def size(self, key: str, default: int) -> int:
        """Return a size in bytes."""
        return units.parse_size(self._pairs[key], key) if key in self._pairs else default

    def truth(self, key: str, default: bool) -> bool:
        """Return true or false."""
        return units.parse_bool(self._pairs[key], key) if key in self._pairs else default

    def percent(self, key: str, default: int, *, least: int = 0, below: int = 100, sign_required: bool = False) -> int:
        """Return a whole percentage. Raises InvalidValue unless it is `least` or more and less than `below`."""
        if key not in self._pairs:
            return default
        value = units.parse_percent(self._pairs[key], key, below=below, sign_required=sign_required)
        if value < least:
            raise InvalidValue(f"{key}: {self._pairs[key]!r} is too little", hint=f"give at least {least}%")
        return value

    def count(self, key: str, least: int = 0, most: int = (1 << 64) - 1) -> int | None:
        """Return a whole number, None without it. Raises InvalidValue unless it is from `least` to `most`."""
        if key not in self._pairs:
            return None
        text = self._pairs[key]
        if not text.isdecimal() or not text.isascii() or int(text) > (1 << 64) - 1:
            raise InvalidValue(f"{key}: {text!r} is not a count", hint="write a whole number, such as 0")
        if not least <= int(text) <= most:
            raise InvalidValue(f"{key}: {text} is out of range", hint=f"give {least} to {most}")
        return int(text)
