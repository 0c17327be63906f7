"""C structures by the names of their fields: those of ioctls and those of formats on a disk.

A structure is a NamedTuple whose fields have a type of this module, which carries the code of the struct module:

    class BitmapHeader(NamedTuple):
        checksum: U32
        not_used: U32
        block: U64

    BITMAP_HEADER = CStruct("<", BitmapHeader)
"""

import struct
from typing import Annotated, Any, Generic, TypeVar

U32 = Annotated[int, "I"]
S32 = Annotated[int, "i"]
U64 = Annotated[int, "Q"]

_Record = TypeVar("_Record", bound=tuple[Any, ...])


class CStruct(Generic[_Record]):
    """How a structure lies in memory or on a disk.

    `order` is `=` for the processor's byte order, `<` or `>`; never is there padding that no field names. A second word
    in a field's annotation, as in `Annotated[int, "I", 0x60]`, is the field's offset in bytes: what lies before it
    since the last field is skipped, and zero when it is packed.
    """

    def __init__(self, order: str, record: type[_Record]) -> None:
        layout = order
        for hint in record.__annotations__.values():
            code, *offset = hint.__metadata__
            if offset:
                layout += f"{offset[0] - struct.calcsize(layout)}x"
            layout += code
        self._struct = struct.Struct(layout)
        self._record = record
        self.size = self._struct.size

    def pack(self, record: _Record) -> bytes:
        """Return the bytes of a structure; a text that is shorter than its field is filled up with zeros."""
        return self._struct.pack(*record)

    def unpack(self, buffer: bytes | bytearray, offset: int = 0) -> _Record:
        """Return the structure that lies in a buffer from `offset` on. Raise struct.error beyond the buffer's end."""
        # What the record's own constructor does, without a call of Python's.
        return tuple.__new__(self._record, self._struct.unpack_from(buffer, offset))


def text(field: bytes) -> bytes:
    """Return the text in a field of fixed length: what is before its first zero byte."""
    return field.split(b"\0", 1)[0]
