"""A client of containerd's diff service: dmthin's, or containerd's own, which asks dmthin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from enginelib.snapshots import CHANNEL_OPTIONS, Mount, classes
from enginelib.waiting import PATIENCE

SERVICE = "containerd.services.diff.v1.Diff"
LAYER = "application/vnd.oci.image.layer.v1.tar"

_MESSAGES = {
    "Timestamp": "int64 seconds 1; int32 nanos 2",
    "Mount": "string type 1; string source 2; string target 3; repeated string options 4",
    "Descriptor": "string media_type 1; string digest 2; int64 size 3; map annotations 5",
    "DiffRequest": (
        "repeated Mount left 1; repeated Mount right 2; string media_type 3; string ref 4; map labels 5;"
        " Timestamp source_date_epoch 6"
    ),
    "DiffResponse": "Descriptor diff 3",
    "ApplyRequest": "Descriptor diff 1; repeated Mount mounts 2; bool sync_fs 4",
    "ApplyResponse": "Descriptor applied 1",
}
_CLASSES = classes(_MESSAGES, "diff.proto")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: its media type, its digest, and its size in bytes."""

    media_type: str
    digest: str
    size: int


class Differ:
    """The diff service at a socket. Its methods raise grpc.RpcError as grpcio does. `headers` go with each request."""

    def __init__(self, socket: Path, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.headers = tuple(headers)
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def diff(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> "DiffCall":
        """Begin the layer from one list of mounts to another, in containerd's content store. `epoch` in seconds."""
        request = _CLASSES["DiffRequest"](
            left=map(_mount, left), right=map(_mount, right), media_type=media_type, ref=ref, labels=dict(labels or {})
        )
        if epoch is not None:
            request.source_date_epoch.seconds = epoch
        return DiffCall(self._method("Diff").future(request, timeout=PATIENCE, metadata=self.headers))

    def apply(self, blob: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
        """Unpack a blob; what its tar is."""
        descriptor = _CLASSES["Descriptor"](media_type=blob.media_type, digest=blob.digest, size=blob.size)
        request = _CLASSES["ApplyRequest"](diff=descriptor, mounts=map(_mount, mounts))
        return _descriptor(self._method("Apply")(request, timeout=PATIENCE, metadata=self.headers).applied)

    def _method(self, name: str) -> Any:
        return self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=_CLASSES[f"{name}Request"].SerializeToString,
            response_deserializer=_CLASSES[f"{name}Response"].FromString,
        )


class DiffCall:
    """A Diff that is under way."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> Descriptor:
        """Wait for the layer."""
        return _descriptor(self._future.result().diff)

    def cancel(self) -> None:
        self._future.cancel()


def _mount(mount: Mount) -> Any:
    return _CLASSES["Mount"](type=mount.type, source=mount.source, options=mount.options)


def _descriptor(message: Any) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size)
