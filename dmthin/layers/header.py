"""Decoding of 512-byte tar header blocks and of PAX records, with validation.

Formats: POSIX.1-1988 ustar, V7, GNU (base-256 numbers; see GNU tar's manual, "Basic Tar Format"),
POSIX.1-2001 PAX. Every function here raises Malformed for input that no writer of these formats produces.
"""

import functools
import re
import struct
from dataclasses import dataclass

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

LARGEST = (1 << 63) - 1
"""The largest file size and offset in bytes: the kernel's loff_t."""

LAYOUT = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_GNU_MAGIC = b"ustar  \0"
_POSIX_MAGIC = b"ustar\0"
_SPARSE_IN_HEADER, _SPARSE_CONTINUED, _SPARSE_SIZE = 386, 482, 483
_EXTENSION_CONTINUED = 504
NANOSECONDS = 1_000_000_000
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_INTEGER = re.compile(rb"[-+]?[0-9]{1,19}")


class Malformed(Exception):
    """The reason why a header is invalid. TarReader adds the archive's name and the offset."""


class NoHeader(Malformed):
    """The block is no header at all: its checksum is wrong."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """A decoded header block. Only the checksum and the syntax of its numbers have been verified.

    `type` is the one-byte type flag. Names end at their first NUL; `name` includes the ustar prefix.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    type: bytes
    link: bytes
    major: int
    minor: int


@functools.lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """Return the number in a header field: octal digits, or base-256 if the first bit is set.

    Spaces and NULs may come before the digits. The first space or NUL after them ends the number; what follows is
    ignored, as in GNU tar and Go. Raise Malformed.
    """
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = field.lstrip(b" \0").partition(b"\0")[0].partition(b" ")[0]
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise Malformed(f"the number {digits[:12]!r} is not octal")
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def parse_header(block: bytes) -> TarHeader:
    """Decode a block of 512 bytes. Raise NoHeader for a wrong checksum, Malformed for a wrong number."""
    # fmt: off
    (name, mode, uid, gid, size, mtime, checksum, kind, link, magic,
     _uname, _gname, major, minor, prefix) = LAYOUT.unpack(block)
    # fmt: on
    try:
        expected = number(checksum)
    except Malformed:
        raise NoHeader("the checksum of a header is not a number") from None
    plain_sum = sum(block) - sum(checksum) + 8 * ord(" ")
    # Sun's and NeXT's tar summed signed bytes (GNU tar, "Checksumming Problems").
    if expected != plain_sum and expected != plain_sum - 256 * sum(byte >> 7 for byte in block[:148] + block[156:]):
        raise NoHeader("the checksum of a header is wrong")
    name = _text(name)
    device = kind in b"34"
    # GNU's own format has times and sparse maps where ustar has the prefix of a long name.
    if prefix[0] and magic[:6] == _POSIX_MAGIC:
        name = _text(prefix) + b"/" + name
    return TarHeader(
        name,
        number(mode),
        number(uid),
        number(gid),
        number(size),
        number(mtime) * NANOSECONDS,
        kind,
        _text(link),
        number(major) if device else 0,
        number(minor) if device else 0,
    )


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the (key, value) pairs of the `LENGTH KEY=VALUE\\n` records of a PAX header, in order, undecoded.

    Raise Malformed.
    """
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        if space < 0 or not data[at:space].isdigit():
            raise Malformed("a PAX record has no length")
        end = at + int(data[at:space])
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise Malformed("the length of a PAX record is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise Malformed("a PAX record has no key")
        records.append((key, value))
        at = end
    return records


def parse_time(text: bytes) -> int:
    """Return the nanoseconds of a PAX time such as `1700000000.123456789`; digits beyond the ninth are dropped.

    Raise Malformed.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise Malformed(f"{text[:40]!r} is not a time")
    fraction = (match[3] or b"")[:9].ljust(9, b"0")
    value = int(match[2]) * NANOSECONDS + int(fraction)
    return -value if match[1] else value


def parse_decimal(text: bytes, what: str) -> int:
    """Return the count or size in a PAX record. Raise Malformed, naming `what`, unless it is 0 to LARGEST."""
    if _DECIMAL.fullmatch(text) is None or (value := int(text)) > LARGEST:
        raise Malformed(f"{text[:40]!r} is not a {what}")
    return value


def parse_integer(text: bytes, what: str) -> int:
    """Return the number in a PAX record, which may have a sign. Raise Malformed, naming `what`, beyond 64 bits."""
    if _INTEGER.fullmatch(text) is None or abs(value := int(text)) > LARGEST:
        raise Malformed(f"{text[:40]!r} is not a {what}")
    return value


def parse_sparse(block: bytes, *, continued: bool) -> tuple[list[tuple[int, int]], bool]:
    """Return the (offset, length) pairs of a GNU header of type S, and whether an extension block follows.

    With `continued`, `block` is such an extension block. Raise Malformed.
    """
    at, count = (0, 21) if continued else (_SPARSE_IN_HEADER, 4)
    pairs = []
    for start in range(at, at + 24 * count, 24):
        if not block[start + 12]:  # GNU tar ends the list at the first pair without length
            break
        pairs.append((number(block[start : start + 12]), number(block[start + 12 : start + 24])))
    return pairs, bool(block[_EXTENSION_CONTINUED if continued else _SPARSE_CONTINUED])


def parse_sparse_size(block: bytes) -> int:
    """Return the size in bytes, holes included, of the file that a GNU header of type S describes. Raise Malformed."""
    return number(block[_SPARSE_SIZE : _SPARSE_SIZE + 12])
