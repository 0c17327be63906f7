"""The messages of containerd.services.snapshots.v1.

Names and numbers are those of containerd's api/services/snapshots/v1/snapshots.proto and api/types/mount.proto.
"""

from typing import Any

from dmthin.containerd.descriptors import COMMON, Fields, build

SERVICE = "containerd.services.snapshots.v1.Snapshots"

_MESSAGES: Fields = {
    **COMMON,
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
_messages = build("dmthin.snapshots", _MESSAGES)

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
