"""The messages of containerd.services.content.v1 and containerd.services.leases.v1 that dmthin sends and receives.

Names and numbers are those of containerd's api/services/content/v1/content.proto and leases/v1/leases.proto. Messages
of the leases service begin with `Lease`.
"""

from typing import Any

from dmthin.containerd.descriptors import COMMON, Fields, build

CONTENT = "containerd.services.content.v1.Content"
LEASES = "containerd.services.leases.v1.Leases"

STAT, WRITE, COMMIT = 0, 1, 2
"""The values of WriteAction."""

_MESSAGES: Fields = {
    **COMMON,
    "Info": ((1, "digest", "string"), (2, "size", "int64"), (5, "labels", "map")),
    "InfoRequest": ((1, "digest", "string"),),
    "InfoResponse": ((1, "info", "Info"),),
    "UpdateRequest": ((1, "info", "Info"), (2, "update_mask", "FieldMask")),
    "ReadRequest": ((1, "digest", "string"), (2, "offset", "int64"), (3, "size", "int64")),
    "ReadResponse": ((1, "offset", "int64"), (2, "data", "bytes")),
    "WriteRequest": (
        (1, "action", "int32"),
        (2, "ref", "string"),
        (3, "total", "int64"),
        (4, "expected", "string"),
        (5, "offset", "int64"),
        (6, "data", "bytes"),
        (7, "labels", "map"),
    ),
    "WriteResponse": ((1, "action", "int32"), (4, "offset", "int64"), (5, "total", "int64"), (6, "digest", "string")),
    "AbortRequest": ((1, "ref", "string"),),
    "Lease": ((1, "id", "string"), (3, "labels", "map")),
    "LeaseCreateRequest": ((1, "id", "string"), (3, "labels", "map")),
    "LeaseCreateResponse": ((1, "lease", "Lease"),),
    "LeaseDeleteRequest": ((1, "id", "string"), (2, "sync", "bool")),
    "LeaseResource": ((1, "id", "string"), (2, "type", "string")),
    "LeaseAddResourceRequest": ((1, "id", "string"), (2, "resource", "LeaseResource")),
}

_messages = build("dmthin.content", _MESSAGES)

Empty: Any = _messages["Empty"]
FieldMask: Any = _messages["FieldMask"]
Info: Any = _messages["Info"]
InfoRequest: Any = _messages["InfoRequest"]
InfoResponse: Any = _messages["InfoResponse"]
UpdateRequest: Any = _messages["UpdateRequest"]
ReadRequest: Any = _messages["ReadRequest"]
ReadResponse: Any = _messages["ReadResponse"]
WriteRequest: Any = _messages["WriteRequest"]
WriteResponse: Any = _messages["WriteResponse"]
AbortRequest: Any = _messages["AbortRequest"]
LeaseCreateRequest: Any = _messages["LeaseCreateRequest"]
LeaseCreateResponse: Any = _messages["LeaseCreateResponse"]
LeaseDeleteRequest: Any = _messages["LeaseDeleteRequest"]
LeaseResource: Any = _messages["LeaseResource"]
LeaseAddResourceRequest: Any = _messages["LeaseAddResourceRequest"]
