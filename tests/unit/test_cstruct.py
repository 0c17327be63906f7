"""C structures by the names of their fields."""

import struct
from typing import Annotated, NamedTuple

import pytest

from dmthin.kernel.cstruct import S32, U32, U64, CStruct, text


class Sample(NamedTuple):
    kind: U32
    number: U64
    offset: S32 = -1
    name: Annotated[bytes, "8s"] = b""


class Sparse(NamedTuple):
    first: U32
    later: Annotated[int, "I", 0x10]
    last: U32


def test_fields_lie_one_after_the_other_without_padding() -> None:
    sample = CStruct("<", Sample)
    assert sample.size == 24
    packed = sample.pack(Sample(1, 2, name=b"abc"))
    assert packed == b"\1\0\0\0" + b"\2" + bytes(7) + b"\xff\xff\xff\xff" + b"abc" + bytes(5)
    found = sample.unpack(b"four" + packed, 4)
    assert (type(found), found.kind, found.number, found.offset) == (Sample, 1, 2, -1)
    assert (found.name, text(found.name)) == (b"abc\0\0\0\0\0", b"abc")


def test_the_byte_order_is_that_of_the_format() -> None:
    assert CStruct(">", Sample).pack(Sample(1, 2))[:12] == struct.pack(">IQ", 1, 2)


def test_a_field_may_have_an_offset() -> None:
    sparse = CStruct("<", Sparse)
    assert sparse.size == 0x18
    packed = sparse.pack(Sparse(1, 2, 3))
    assert packed == struct.pack("<I12xII", 1, 2, 3)
    assert sparse.unpack(packed) == Sparse(1, 2, 3)


def test_a_buffer_that_is_too_short() -> None:
    with pytest.raises(struct.error):
        CStruct("<", Sample).unpack(bytes(23))


def test_a_text_without_a_zero_is_the_whole_field() -> None:
    assert text(b"12345678") == b"12345678"
    assert text(b"") == b""
