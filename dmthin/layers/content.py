"""Writing the data of files, with holes where it is nothing but zeros."""

import os

from dmthin.errors import InvalidValue
from dmthin.layers.entry import Reader
from dmthin.units import KIB, MIB

CHUNK = MIB
"""Bytes asked of a reader at a time."""

_ALIGNED = 64 * KIB
_ZEROS = bytes(_ALIGNED)


class EndsTooEarly(InvalidValue):
    """A reader gave less than its entry promised."""


def write_all(fd: int, data: Reader, at: int, length: int) -> None:
    """Write the next `length` bytes of `data` into a file from the offset `at` on."""
    end = at + length
    while at < end:
        piece = _piece(data, end - at)
        _put(fd, piece, 0, len(piece), at)
        at += len(piece)


def write_sparse(fd: int, data: Reader, at: int, length: int) -> int:
    """As `write_all`, but aligned stretches of zeros are skipped; returns where the last byte written ends.

    The file must be new, so that what is skipped is a hole, and be given its length afterwards.
    """
    end, written = at + length, at
    while at < end:
        piece = _piece(data, end - at)
        start = here = 0
        while here < len(piece):
            there = min(here + _ALIGNED - (at + here) % _ALIGNED, len(piece))
            if _is_zero(piece, here, there):
                if start < here:
                    written = _put(fd, piece, start, here, at)
                start = there
            here = there
        if start < here:
            written = _put(fd, piece, start, here, at)
        at += len(piece)
    return written


def _piece(data: Reader, left: int) -> bytes:
    piece = data.read(min(left, CHUNK))
    if not piece:
        raise EndsTooEarly("the data ends before its size")
    return piece


def _is_zero(piece: bytes, start: int, end: int) -> bool:
    """By one memcmp(3), unless it is plain at the first byte; only the edges of a piece are less than a whole stretch.

    These count however short they are: written out, they would cost a block of the pool each.
    """
    if piece[start]:
        return False
    if end - start == _ALIGNED:
        return piece.startswith(_ZEROS, start)
    return piece.startswith(_ZEROS[: end - start], start)


def _put(fd: int, piece: bytes, start: int, end: int, at: int) -> int:
    """Write a part of a piece, which belongs at the offset `at`; returns the offset behind it."""
    left = piece if start == 0 and end == len(piece) else memoryview(piece)[start:end]
    at += start
    while left:
        count = os.pwrite(fd, left, at)
        at += count
        left = memoryview(left)[count:]
    return at
