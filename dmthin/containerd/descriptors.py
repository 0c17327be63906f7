"""Messages of containerd's services, described by tables and built by protobuf at run time.

Generated code would depend on one release of protobuf. The descriptors are in pools of their own, so that they cannot
conflict with those of another package.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as DecodeError

Fields = Mapping[str, tuple[tuple[int, str, str], ...]]
"""Number, name and type of each field, by the message's name.

A type is a scalar type of protobuf or a message of the same table. `*` is repeated, `map` is map<string, string>. An
enum is an int32 here, which has the same wire format.
"""

COMMON: Fields = {
    "Empty": (),
    "FieldMask": ((1, "paths", "string*"),),
    "Timestamp": ((1, "seconds", "int64"), (2, "nanos", "int32")),
    "Mount": ((1, "type", "string"), (2, "source", "string"), (3, "target", "string"), (4, "options", "string*")),
}
"""The messages of google.protobuf and containerd.types that several services have."""

_SCALARS = {"string": 9, "bytes": 12, "int64": 3, "int32": 5, "bool": 8}
_MESSAGE = 11
_OPTIONAL, _REPEATED = 1, 3


def build(package: str, messages: Fields) -> dict[str, Any]:
    """Return the classes of the messages, by name. `package` is a protobuf package name, used once in the process."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_describe(package, messages).SerializeToString())
    # protobuf of Debian 12 has MessageFactory only.
    make = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _describe(package: str, messages: Fields) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number, label=_OPTIONAL)
            if kind == "map":
                _describe_map(message, field, f".{package}.{name}")
                continue
            if kind.endswith("*"):
                field.label = _REPEATED
            kind = kind.rstrip("*")
            field.type = _SCALARS.get(kind, _MESSAGE)
            if kind not in _SCALARS:
                field.type_name = f".{package}.{kind}"
    return file


def _describe_map(message: Any, field: Any, owner: str) -> None:
    """Describe a map: repeated entries of a nested type with a key and a value (protobuf's language guide)."""
    entry = message.nested_type.add(name=f"{field.name.title()}Entry")
    entry.options.map_entry = True
    for number, name in ((1, "key"), (2, "value")):
        entry.field.add(name=name, number=number, label=_OPTIONAL, type=_SCALARS["string"])
    field.label, field.type = _REPEATED, _MESSAGE
    field.type_name = f"{owner}.{entry.name}"
