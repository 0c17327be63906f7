"""The messages of containerd.services.snapshots.v1, described here and made by protobuf at run time.

Names and numbers are those of containerd's api/services/snapshots/v1/snapshots.proto and api/types/mount.proto. There
is no generated code, which would tie us to one release of protobuf, and the descriptors are in a pool of their own,
where they cannot clash with those of another package.
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
"""Fields by number, name and type: `*` is repeated, `map` is one of strings by strings. An enum is an int32 here, which
is the same on the wire."""


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
    """A map is repeated entries of a nested type with a key and a value (protobuf's language guide)."""
    entry = message.nested_type.add(name=f"{field.name.title()}Entry")
    entry.options.map_entry = True
    for number, name in ((1, "key"), (2, "value")):
        entry.field.add(name=name, number=number, label=_OPTIONAL, type=_KINDS["string"])
    field.label, field.type = _REPEATED, _KINDS["message"]
    field.type_name = f".{_PACKAGE}.{owner}.{entry.name}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_describe().SerializeToString())
    # Debian 12's protobuf has the older of the two only.
    make = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


_made = _classes()

Timestamp: Any = _made["Timestamp"]
Empty: Any = _made["Empty"]
Mount: Any = _made["Mount"]
Info: Any = _made["Info"]
PrepareRequest: Any = _made["PrepareRequest"]
MountsRequest: Any = _made["MountsRequest"]
MountsResponse: Any = _made["MountsResponse"]
CommitRequest: Any = _made["CommitRequest"]
RemoveRequest: Any = _made["RemoveRequest"]
StatRequest: Any = _made["StatRequest"]
InfoResponse: Any = _made["InfoResponse"]
UpdateRequest: Any = _made["UpdateRequest"]
ListRequest: Any = _made["ListRequest"]
ListResponse: Any = _made["ListResponse"]
UsageRequest: Any = _made["UsageRequest"]
UsageResponse: Any = _made["UsageResponse"]
CleanupRequest: Any = _made["CleanupRequest"]
