"""A client of containerd's snapshots service, of other parts than the server: grpcio carries it, protobuf encodes it.

The messages are made here, at run time and in a pool of their own, from the numbers that the API has. Whatever a
containerd of any release may send can be sent: masks and times made by hand, fields that nobody knows, raw bytes.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# The tests fork. With this gRPC leaves the child alone, and it must know before it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from enginelib.waiting import PATIENCE

SERVICE = "containerd.services.snapshots.v1.Snapshots"
YEAR_ONE = -62135596800 * 10**9
"""Go's zero time, in nanoseconds since the epoch: what containerd 1.6 sends for times that it does not mean."""

UNKNOWN_FIELDS = bytes([0xC0, 0x3E, 0x07, 0xCA, 0x3E, 0x02, 0x68, 0x69, 0xD5, 0x3E, *bytes(4), 0xD9, 0x3E, *bytes(8)])
"""Fields 1000 to 1003, one of each wire type there is: a varint, a string, four bytes, eight bytes."""

_PACKAGE = "dmthin.tests"
_KINDS = {"view": 1, "active": 2, "committed": 3}
_MEGABYTE = 1 << 20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * _MEGABYTE),  # containerd's own limit
    ("grpc.max_send_message_length", 16 * _MEGABYTE),
    # Else a channel shares its connection, and how long it waits after a failure, with those to an earlier server.
    ("grpc.use_local_subchannel_pool", 1),
)

_MESSAGES = {
    "Timestamp": "int64 seconds 1; int32 nanos 2",
    "FieldMask": "repeated string paths 1",
    "Mount": "string type 1; string source 2; string target 3; repeated string options 4",
    "Info": (
        "string name 1; string parent 2; int32 kind 3; Timestamp created_at 4; Timestamp updated_at 5; map labels 6"
    ),
    "Empty": "",
    "Mounted": "repeated Mount mounts 1",
    "One": "Info info 1",
    "Many": "repeated Info info 1",
    "Used": "int64 size 1; int64 inodes 2",
    "PrepareRequest": "string snapshotter 1; string key 2; string parent 3; map labels 4",
    "KeyRequest": "string snapshotter 1; string key 2",
    "CommitRequest": "string snapshotter 1; string name 2; string key 3; map labels 4; string parent 5",
    "UpdateRequest": "string snapshotter 1; Info info 2; FieldMask update_mask 3",
    "ListRequest": "string snapshotter 1; repeated string filters 2",
    "CleanupRequest": "string snapshotter 1",
}
_METHODS = {
    "Prepare": ("PrepareRequest", "Mounted"),
    "View": ("PrepareRequest", "Mounted"),
    "Mounts": ("KeyRequest", "Mounted"),
    "Commit": ("CommitRequest", "Empty"),
    "Remove": ("KeyRequest", "Empty"),
    "Stat": ("KeyRequest", "One"),
    "Update": ("UpdateRequest", "One"),
    "List": ("ListRequest", "Many"),
    "Usage": ("KeyRequest", "Used"),
    "Cleanup": ("CleanupRequest", "Empty"),
}


@dataclass(frozen=True, slots=True)
class Mount:
    """How a snapshot is mounted."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Info:
    """What Stat and List tell; `created` and `updated` in nanoseconds since the epoch, `kind` as filters call it."""

    name: str
    parent: str
    kind: str
    created: int
    updated: int
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot holds beyond its parent; `size` in bytes."""

    size: int
    inodes: int


class Snapshots:
    """One snapshotter of a server. Every method raises grpc.RpcError as grpcio does. Threads may share a client.

    `extra` is appended to each request as it is encoded, `headers` go with each, `timeout` is in seconds.
    """

    def __init__(
        self,
        socket: Path,
        snapshotter: str = "dmthin",
        *,
        extra: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        timeout: float = PATIENCE,
    ) -> None:
        self.snapshotter = snapshotter
        self.extra = extra
        self.headers = tuple(headers)
        self.timeout = timeout
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)

    def close(self) -> None:
        """Break off what is under way and let go of the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        return _mounts(self._call("Prepare", key=key, parent=parent, labels=dict(labels or {})))

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        return _mounts(self._call("View", key=key, parent=parent, labels=dict(labels or {})))

    def mounts(self, key: str) -> tuple[Mount, ...]:
        return _mounts(self._call("Mounts", key=key))

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, *, parent: str = "") -> None:
        self._call("Commit", name=name, key=key, labels=dict(labels or {}), parent=parent)

    def remove(self, key: str) -> None:
        self._call("Remove", key=key)

    def stat(self, key: str) -> Info:
        return _info(self._call("Stat", key=key).info)

    def update(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        mask: Sequence[str] | None = None,
        *,
        parent: str = "",
        kind: str | int = 0,
        created: int | None = None,
        updated: int | None = None,
    ) -> Info:
        """Send an Info made by hand. A `mask` of None is not sent at all, an empty one is sent empty."""
        number = _KINDS[kind] if isinstance(kind, str) else kind
        info = _CLASSES["Info"](name=name, parent=parent, kind=number, labels=dict(labels or {}))
        for field, time in ((info.created_at, created), (info.updated_at, updated)):
            if time is not None:
                field.SetInParent()
                field.seconds, field.nanos = divmod(time, 10**9)
        fields = {"info": info}
        if mask is not None:
            fields["update_mask"] = _CLASSES["FieldMask"](paths=mask)
        return _info(self._call("Update", **fields).info)

    def list(self, *filters: str) -> tuple[Info, ...]:
        return tuple(info for batch in self.batches(*filters) for info in batch)

    def batches(self, *filters: str) -> Generator[tuple[Info, ...], None, None]:
        """The messages of a List's stream, each read when it is asked for; `close` breaks the stream off."""
        method = self._channel.unary_stream(
            _path("List"), request_serializer=self._encode, response_deserializer=_CLASSES["Many"].FromString
        )
        request = _CLASSES["ListRequest"](snapshotter=self.snapshotter, filters=filters)
        stream = method(request, timeout=self.timeout, metadata=self.headers)
        try:
            for message in stream:
                yield tuple(map(_info, message.info))
        finally:
            stream.cancel()

    def usage(self, key: str) -> Usage:
        answer = self._call("Usage", key=key)
        return Usage(answer.size, answer.inodes)

    def cleanup(self) -> None:
        self._call("Cleanup")

    def raw(self, method: str, body: bytes) -> bytes:
        """Send these bytes as a request, `extra` not appended, and return the answer's bytes."""
        answer: bytes = self._channel.unary_unary(_path(method))(body, timeout=self.timeout, metadata=self.headers)
        return answer

    def _call(self, method: str, **fields: Any) -> Any:
        request, answer = (_CLASSES[name] for name in _METHODS[method])
        call = self._channel.unary_unary(
            _path(method), request_serializer=self._encode, response_deserializer=answer.FromString
        )
        body = request(snapshotter=self.snapshotter, **fields)
        return call(body, timeout=self.timeout, metadata=self.headers)

    def _encode(self, message: Any) -> bytes:
        encoded: bytes = message.SerializeToString()
        return encoded + self.extra


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def _mounts(answer: Any) -> tuple[Mount, ...]:
    return tuple(Mount(mount.type, mount.source, tuple(mount.options)) for mount in answer.mounts)


def _info(message: Any) -> Info:
    kinds = {number: kind for kind, number in _KINDS.items()}
    created, updated = message.created_at, message.updated_at
    return Info(
        name=message.name,
        parent=message.parent,
        kind=kinds.get(message.kind, "unknown"),
        created=created.seconds * 10**9 + created.nanos,
        updated=updated.seconds * 10**9 + updated.nanos,
        labels=dict(message.labels),
    )


def classes(messages: Mapping[str, str], file_name: str) -> dict[str, Any]:
    """A class for each of the messages, which are described as `_MESSAGES` are."""
    file = descriptor_pb2.FileDescriptorProto(name=file_name, package=_PACKAGE, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split("; ")):
            _add_field(message, *text.removeprefix("repeated ").split(), repeated=text.startswith("repeated "))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    # GetMessageClass is new in 4.22; Debian 13 has 4.21.
    make = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in messages}


def _add_field(message: Any, kind: str, name: str, number: str, *, repeated: bool) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=types.LABEL_OPTIONAL)
    if repeated or kind == "map":
        field.label = types.LABEL_REPEATED
    match kind:
        case "string":
            field.type = types.TYPE_STRING
        case "int32":  # an enum is one on the wire
            field.type = types.TYPE_INT32
        case "int64":
            field.type = types.TYPE_INT64
        case "bool":
            field.type = types.TYPE_BOOL
        case "map":
            entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
            entry.options.map_entry = True
            _add_field(entry, "string", "key", "1", repeated=False)
            _add_field(entry, "string", "value", "2", repeated=False)
            field.type, field.type_name = types.TYPE_MESSAGE, f".{_PACKAGE}.{message.name}.{entry.name}"
        case _:
            field.type, field.type_name = types.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"


_CLASSES = classes(_MESSAGES, "snapshots.proto")
