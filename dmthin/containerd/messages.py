"""The messages of containerd.services.snapshots.v1, described here and built by protobuf at run time.

Names and numbers are those of containerd's api/services/snapshots/v1/snapshots.proto and api/types/mount.proto.
Generated code would depend on one release of protobuf. The descriptors are in a separate pool, so that they cannot
conflict with those of another package.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as DecodeError

SERVICE = "containerd.services.snapshots.v1.Snapshots"

_PACKAGE = "dmthin.snapshots"
_KINDS = {"string": 9, "int64": 3, "int32": 5, "enum": 14, "message": 11}
_OPTIONAL, _REPEATED = 1, 3

_MESSAGES: dict[str, tuple[tuple[int, str, str], ...]] = {
    "Timestamp": ((1, "seconds", "int64"), (2, "nanos", "int32")),
    "FieldMask": ((1, "paths", "string*"),),
    "Empty": (),
    "Mount": ((1, "type", "string"), (2, "source", "string"), (3, "target", "string"), (4, "options", "string*")),
    "Info": (
        (1, "name", "string"),
        (2, "parent", "string"),
        (3, "kind", "int32"),
        (4, "created_at", "Timestamp"),
        (5, "updated_at", "Timestamp"),
        (6, "labels", "map"),
    ),
    "PrepareRequest": (
        (1, "snapshotter", "string"),
        (2, "key", "string"),
        (3, "parent", "string"),
        (4, "labels", "map"),
    ),
    "MountsRequest": ((1, "snapshotter", "string"), (2, "key", "string")),
    "MountsResponse": ((1, "mounts", "Mount*"),),
    "CommitRequest": (
        (1, "snapshotter", "string"),
        (2, "name", "string"),
        (3, "key", "string"),
        (4, "labels", "map"),
        (5, "parent", "string"),
    ),
    "RemoveRequest": ((1, "snapshotter", "string"), (2, "key", "string")),
    "StatRequest": ((1, "snapshotter", "string"), (2, "key", "string")),
    "InfoResponse": ((1, "info", "Info"),),
    "UpdateRequest": ((1, "snapshotter", "string"), (2, "info", "Info"), (3, "update_mask", "FieldMask")),
    "ListRequest": ((1, "snapshotter", "string"), (2, "filters", "string*")),
    "ListResponse": ((1, "info", "Info*"),),
    "UsageRequest": ((1, "snapshotter", "string"), (2, "key", "string")),
    "UsageResponse": ((1, "size", "int64"), (2, "inodes", "int64")),
    "CleanupRequest": ((1, "snapshotter", "string"),),
}
"""Number, name and type of each field. `*` is repeated, `map` is map<string, string>. An enum is an int32 here, which
has the same wire format."""


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number, label=_OPTIONAL)
            if kind == "map":
                _describe_map(message, field, name)
                continue
            if kind.endswith("*"):
                field.label = _REPEATED
            kind = kind.rstrip("*")
            field.type = _KINDS.get(kind, _KINDS["message"])
            if kind not in _KINDS:
                field.type_name = f".{_PACKAGE}.{kind}"
    return file


def _describe_map(message: Any, field: Any, owner: str) -> None:
    """Describe a map: repeated entries of a nested type with a key and a value (protobuf's language guide)."""
    entry = message.nested_type.add(name=f"{field.name.title()}Entry")
    entry.options.map_entry = True
    for number, name in ((1, "key"), (2, "value")):
        entry.field.add(name=name, number=number, label=_OPTIONAL, type=_KINDS["string"])
    field.label, field.type = _REPEATED, _KINDS["message"]
    field.type_name = f".{_PACKAGE}.{owner}.{entry.name}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_describe().SerializeToString())
    # protobuf of Debian 12 has MessageFactory only.
    make = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


_messages = _classes()

Timestamp: Any = _messages["Timestamp"]
Empty: Any = _messages["Empty"]
Mount: Any = _messages["Mount"]
Info: Any = _messages["Info"]
PrepareRequest: Any = _messages["PrepareRequest"]
MountsRequest: Any = _messages["MountsRequest"]
MountsResponse: Any = _messages["MountsResponse"]
CommitRequest: Any = _messages["CommitRequest"]
RemoveRequest: Any = _messages["RemoveRequest"]
StatRequest: Any = _messages["StatRequest"]
InfoResponse: Any = _messages["InfoResponse"]
UpdateRequest: Any = _messages["UpdateRequest"]
ListRequest: Any = _messages["ListRequest"]
ListResponse: Any = _messages["ListResponse"]
UsageRequest: Any = _messages["UsageRequest"]
UsageResponse: Any = _messages["UsageResponse"]
CleanupRequest: Any = _messages["CleanupRequest"]
