"""The maps of sparse files in a tar: where the data of a file lies between its holes (GNU tar's manual, "Sparse")."""

from dmthin.layers.extended import Segments
from dmthin.layers.header import BLOCK, LARGEST, Malformed, parse_decimal, parse_sparse, parse_sparse_size
from dmthin.layers.stream import ByteStream

MAX_SEGMENTS = 1 << 18
"""Limit of extents in one sparse file: about 40 MiB of memory."""


def read_gnu_map(stream: ByteStream, block: bytes, stored: int) -> tuple[int, tuple[tuple[int, int], ...] | None]:
    """Return the size and the extents of a file of GNU's type S. Raise Malformed.

    Its map continues in extension blocks between the header and the data.
    """
    size = parse_sparse_size(block)
    pairs, more = parse_sparse(block, continued=False)
    while more:
        block = stream.upto(BLOCK)
        if len(block) < BLOCK:
            raise Malformed("it ends within a sparse map")
        found, more = parse_sparse(block, continued=True)
        pairs += found
        if len(pairs) > MAX_SEGMENTS:
            raise Malformed(f"a sparse map of more than {MAX_SEGMENTS} extents")
    return size, validated(pairs, size, stored)


def read_map(stream: ByteStream, stored: int) -> tuple[int, Segments]:
    """Read the sparse map of version 1.0, decimal lines in whole blocks before the data. Raise Malformed.

    The first line is the number of extents; the offset and the length of each follow. Return what the map leaves
    of the `stored` bytes, and the extents.
    """
    numbers: list[int] = []
    wanted = -1  # numbers after the first line; -1: the first line has not been read
    rest = b""
    while wanted < 0 or len(numbers) < wanted:
        block = stream.upto(BLOCK)
        if len(block) < BLOCK or stored < BLOCK or len(rest) > BLOCK:
            raise Malformed("an unterminated sparse map")
        stored -= BLOCK
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            value = parse_decimal(line, "number in a sparse map")
            if wanted >= 0:
                numbers.append(value)
            elif value > MAX_SEGMENTS:
                raise Malformed(f"a sparse map of more than {MAX_SEGMENTS} extents")
            else:
                wanted = 2 * value
    return stored, list(zip(numbers[:wanted:2], numbers[1:wanted:2], strict=True))


def validated(pairs: Segments, size: int, stored: int) -> tuple[tuple[int, int], ...] | None:
    """Return the extents of a sparse file, None if it has no hole.

    Raise Malformed unless they are ascending, within `size`, and `stored` bytes in total.
    """
    segments = []
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > size:
            raise Malformed("an inconsistent sparse map")
        end = offset + length
        total += length
        if length:  # GNU tar marks the end of a file by an extent of length 0
            segments.append((offset, length))
    if total != stored or size > LARGEST:
        raise Malformed("a sparse map inconsistent with the sizes in its headers")
    return None if segments == [(0, size)] else tuple(segments)
