"""containerd's content store and its leases, over containerd's own socket: blobs written, read and kept from removal.

The protocol is that of containerd's api/services/content/v1/content.proto: a blob is written under a ref, which other
writers cannot use meanwhile, and gets its digest with the commit. Each message is answered before the next one is
sent, so that at most one piece is in memory.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from grpclib.client import Channel, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from dmthin.containerd import content_messages as messages
from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    NoDataSpace,
    NotFound,
    NotPermitted,
    TimeLimit,
    ToolFailed,
    Unavailable,
)

UNCOMPRESSED = "containerd.io/uncompressed"
"""The label of a compressed layer with the digest of its tar."""

NAMESPACE_HEADER, LEASE_HEADER = "containerd-namespace", "containerd-lease"

_EXPIRE = "containerd.io/gc.expire"
_UNARY_SECONDS = 60.0
_ERRORS: dict[Status, type[DmthinError]] = {
    Status.NOT_FOUND: NotFound,
    Status.ALREADY_EXISTS: AlreadyExists,
    Status.INVALID_ARGUMENT: InvalidValue,
    Status.FAILED_PRECONDITION: InUse,
    Status.RESOURCE_EXHAUSTED: NoDataSpace,
    Status.PERMISSION_DENIED: NotPermitted,
    Status.DEADLINE_EXCEEDED: TimeLimit,
    Status.UNAVAILABLE: Unavailable,
}


class ContentStore:
    """The content store of one containerd, in one namespace. What is written belongs to the lease, if there is one.

    All methods raise Unavailable if containerd cannot be reached, and for its errors the class that corresponds to the
    status, ToolFailed where none does.
    """

    def __init__(self, channel: Channel, address: Path, namespace: str, lease: str = "") -> None:
        self._channel = channel
        self._address = address
        self._namespace = namespace
        self.lease = lease

    async def create_lease(self, lifetime: timedelta) -> None:
        """Create a lease that expires, for all that is written from now on."""
        until = (datetime.now(UTC) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ")
        request = messages.LeaseCreateRequest(id=f"dmthin-{os.urandom(8).hex()}", labels={_EXPIRE: until})
        created = await self._unary(messages.LEASES, "Create", request, messages.LeaseCreateResponse)
        self.lease = created.lease.id

    async def delete_lease(self) -> None:
        """Delete the lease. What it alone kept is removed by containerd's next garbage collection."""
        request = messages.LeaseDeleteRequest(id=self.lease)
        await self._unary(messages.LEASES, "Delete", request, messages.Empty)
        self.lease = ""

    async def hold(self, digest: str) -> None:
        """Add a blob that exists to the lease."""
        resource = messages.LeaseResource(id=digest, type="content")
        request = messages.LeaseAddResourceRequest(id=self.lease, resource=resource)
        await self._unary(messages.LEASES, "AddResource", request, messages.Empty)

    async def add_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set those labels of a blob that it does not have. Raise NotFound."""
        request = messages.InfoRequest(digest=digest)
        found = await self._unary(messages.CONTENT, "Info", request, messages.InfoResponse)
        missing = {key: value for key, value in labels.items() if key not in found.info.labels}
        if missing:
            mask = messages.FieldMask(paths=[f"labels.{key}" for key in missing])
            update = messages.UpdateRequest(info=messages.Info(digest=digest, labels=missing), update_mask=mask)
            await self._unary(messages.CONTENT, "Update", update, messages.InfoResponse)

    @asynccontextmanager
    async def writer(self, ref: str) -> "AsyncIterator[ContentWriter]":
        """Write a blob under a ref, from the beginning. Without a commit, what was written stays under the ref.

        Raise Unavailable also if another writer has the ref.
        """
        path = f"/{messages.CONTENT}/Write"
        method = StreamStreamMethod(self._channel, path, messages.WriteRequest, messages.WriteResponse)
        with self._translated():
            async with method.open(metadata=self._headers()) as stream:
                yield ContentWriter(stream, ref)

    async def abort(self, ref: str) -> None:
        """Remove what was written under a ref. Do nothing if there is nothing."""
        with suppress(NotFound):
            await self._unary(messages.CONTENT, "Abort", messages.AbortRequest(ref=ref), messages.Empty)

    async def read(self, digest: str) -> AsyncGenerator[bytes, None]:
        """Yield the content of a blob. Raise NotFound."""
        path = f"/{messages.CONTENT}/Read"
        method = UnaryStreamMethod(self._channel, path, messages.ReadRequest, messages.ReadResponse)
        with self._translated():
            async with method.open(metadata=self._headers()) as stream:
                await stream.send_message(messages.ReadRequest(digest=digest), end=True)
                while (response := await stream.recv_message()) is not None:
                    yield response.data

    async def _unary(self, service: str, name: str, request: Any, response: Any) -> Any:
        method = UnaryUnaryMethod(self._channel, f"/{service}/{name}", type(request), response)
        with self._translated():
            return await method(request, timeout=_UNARY_SECONDS, metadata=self._headers())

    def _headers(self) -> dict[str, str]:
        headers = {NAMESPACE_HEADER: self._namespace}
        if self.lease:
            headers[LEASE_HEADER] = self.lease
        return headers

    @contextmanager
    def _translated(self) -> Iterator[None]:
        where = f"containerd at {self._address}"
        try:
            yield
        except GRPCError as error:
            raise _ERRORS.get(error.status, ToolFailed)(f"{where}: {error.message or error.status.name}") from None
        except (StreamTerminatedError, ProtocolError) as error:
            raise Unavailable(f"{where} has ended the call: {error}", hint="see containerd's log") from None
        except TimeoutError:
            raise TimeLimit(
                f"{where} did not answer within {_UNARY_SECONDS:g} s", hint="see containerd's log"
            ) from None
        except OSError as error:
            raise Unavailable(
                f"{where} cannot be reached: {error.strerror or error}",
                hint="set its socket: dmthin serve --containerd-address PATH",
            ) from None


class ContentWriter:
    """A blob that is being written. `size` is the number of bytes written so far."""

    def __init__(self, stream: Any, ref: str) -> None:
        self._stream = stream
        self._ref = ref
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Append to the blob. The first piece replaces what an earlier writer has left under the ref."""
        request = messages.WriteRequest(action=messages.WRITE, ref=self._ref, offset=self.size, data=data)
        await self._exchange(request)
        self.size += len(data)

    async def commit(self, digest: str, labels: Mapping[str, str]) -> None:
        """Make it a blob with that digest, which containerd verifies. Raise AlreadyExists if there is one."""
        request = messages.WriteRequest(
            action=messages.COMMIT, ref=self._ref, offset=self.size, total=self.size, expected=digest, labels=labels
        )
        await self._exchange(request, end=True)

    async def _exchange(self, request: Any, *, end: bool = False) -> None:
        """Send a message and wait for its response. Raise Unavailable for the end of the stream without an error."""
        await self._stream.send_message(request, end=end)
        if await self._stream.recv_message() is None:
            if not end:
                with suppress(StreamTerminatedError, ProtocolError):
                    await self._stream.end()
            await self._stream.recv_trailing_metadata()  # raises the error that ended the stream
            raise Unavailable("containerd has ended the writing of a blob", hint="see containerd's log")


@asynccontextmanager
async def connected(address: Path, namespace: str, lease: str = "") -> AsyncIterator[ContentStore]:
    """Yield the content store of the containerd at a socket, over a connection of its own, made by the first call."""
    channel = Channel(path=os.fspath(address))
    try:
        yield ContentStore(channel, address, namespace, lease)
    finally:
        channel.close()
