"""Writing file data, optionally with holes in place of zeros."""

import os

from dmthin.errors import InvalidValue
from dmthin.layers.entry import Reader
from dmthin.units import KIB, MIB

CHUNK = MIB
"""Bytes requested of a reader at a time."""

_ALIGNED = 64 * KIB
"""Bytes of a stretch of zeros that becomes a hole, and its alignment in the file."""

_ZEROS = bytes(_ALIGNED)


class TruncatedData(InvalidValue):
    """A reader returned less data than the size of its entry."""


def write_all(fd: int, data: Reader, at: int, length: int) -> None:
    """Write the next `length` bytes of `data` to a file, starting at the offset `at`. Raise TruncatedData, OSError."""
    end = at + length
    while at < end:
        piece = _read(data, end - at)
        _pwrite_all(fd, piece, 0, len(piece), at)
        at += len(piece)


def write_sparse(fd: int, data: Reader, at: int, length: int) -> int:
    """Write like `write_all`, but skip aligned stretches of zeros. Return the end offset of the last byte written.

    The file must be new, so that a skipped stretch is a hole. The caller sets its length afterwards.
    Raise TruncatedData, OSError.
    """
    end, written = at + length, at
    while at < end:
        piece = _read(data, end - at)
        # Within the piece, [start, here) is data not yet written, and [here, there) the stretch under examination.
        start = here = 0
        while here < len(piece):
            there = min(here + _ALIGNED - (at + here) % _ALIGNED, len(piece))
            if _is_zero(piece, here, there):
                if start < here:
                    written = _pwrite_all(fd, piece, start, here, at)
                start = there
            here = there
        if start < here:
            written = _pwrite_all(fd, piece, start, here, at)
        at += len(piece)
    return written


def _read(data: Reader, left: int) -> bytes:
    """Return the next piece of at most `left` bytes. Raise TruncatedData at the end."""
    piece = data.read(min(left, CHUNK))
    if not piece:
        raise TruncatedData("the data is shorter than its size")
    return piece


def _is_zero(piece: bytes, start: int, end: int) -> bool:
    """Return whether `piece[start:end]` is all zeros, by one memcmp(3) unless the first byte decides.

    Only at the ends of a piece can it be shorter than a whole stretch. Short ones count as well: writing zeros there
    would allocate a block of the pool.
    """
    if piece[start]:
        return False
    if end - start == _ALIGNED:
        return piece.startswith(_ZEROS, start)
    return piece.startswith(_ZEROS[: end - start], start)


def _pwrite_all(fd: int, piece: bytes, start: int, end: int, at: int) -> int:
    """Write `piece[start:end]`, where `at` is the file offset of `piece[0]`. Return the offset after it."""
    left = piece if start == 0 and end == len(piece) else memoryview(piece)[start:end]
    at += start
    while left:
        count = os.pwrite(fd, left, at)
        at += count
        left = memoryview(left)[count:]
    return at
