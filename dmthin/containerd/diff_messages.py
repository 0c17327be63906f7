"""The messages of containerd.services.diff.v1.

Names and numbers are those of containerd's api/services/diff/v1/diff.proto and api/types. `ApplyRequest.payloads`
(field 3) is left out: it is for media types that dmthin leaves to other differs.
"""

from typing import Any

from dmthin.containerd.descriptors import COMMON, Fields, build

SERVICE = "containerd.services.diff.v1.Diff"

_MESSAGES: Fields = {
    **COMMON,
    "Descriptor": (
        (1, "media_type", "string"),
        (2, "digest", "string"),
        (3, "size", "int64"),
        (5, "annotations", "map"),
    ),
    "ApplyRequest": ((1, "diff", "Descriptor"), (2, "mounts", "Mount*"), (4, "sync_fs", "bool")),
    "ApplyResponse": ((1, "applied", "Descriptor"),),
    "DiffRequest": (
        (1, "left", "Mount*"),
        (2, "right", "Mount*"),
        (3, "media_type", "string"),
        (4, "ref", "string"),
        (5, "labels", "map"),
        (6, "source_date_epoch", "Timestamp"),
    ),
    "DiffResponse": ((3, "diff", "Descriptor"),),
}

_messages = build("dmthin.diff", _MESSAGES)

Timestamp: Any = _messages["Timestamp"]
Mount: Any = _messages["Mount"]
Descriptor: Any = _messages["Descriptor"]
ApplyRequest: Any = _messages["ApplyRequest"]
ApplyResponse: Any = _messages["ApplyResponse"]
DiffRequest: Any = _messages["DiffRequest"]
DiffResponse: Any = _messages["DiffResponse"]
