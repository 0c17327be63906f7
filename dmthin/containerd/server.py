"""The Snapshots and Diff services over gRPC; errors are translated to gRPC status codes. Each call blocks a thread.

The transport is grpclib's, because it tolerates fork(2) and accepts a listening socket.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from dmthin.containerd import diff_messages, messages
from dmthin.containerd.descriptors import DecodeError
from dmthin.containerd.diff import DiffService, Headers, NextDiffer
from dmthin.containerd.snapshotter import MountSpec, Snapshotter
from dmthin.errors import DmthinError, InvalidValue, Unavailable
from dmthin.store.state.model import Snapshot, SnapshotKind

logger = logging.getLogger(__name__)

_THREADS = 64
_INFOS = 100
"""Snapshots in one message of a List response, which is a stream."""

_MESSAGE_BYTES = 4096
"""Limit of a percent-encoded error message. Clients drop headers above 8K, the status included; keys can be long."""

_KINDS = {SnapshotKind.VIEW: 1, SnapshotKind.ACTIVE: 2, SnapshotKind.COMMITTED: 3}

Method = Callable[[Snapshotter, Any], Any]
"""Carries out a request on a snapshotter, and returns the response."""

DiffCall = Callable[[Any, Headers], Awaitable[Any]]
"""Carries out a request with its headers, and returns the response."""

Handle = Callable[[Stream[Any, Any]], Awaitable[None]]


class ContainerdFrontEnd:
    """The services for one containerd, which listens at `address`.

    Calls wait until the snapshotters are open (the future `opening`).
    """

    def __init__(self, opening: asyncio.Future[list[Snapshotter]], address: Path) -> None:
        self._opening = opening
        self._differ = DiffService(self._opened, self._in_thread, address)
        self._threads = ThreadPoolExecutor(_THREADS, "containerd")
        self._in_progress: set[asyncio.Task[Any]] = set()
        self._is_shutting_down = False

    async def drain(self, seconds: float) -> None:
        """Reject new calls, and wait until those in progress have been answered, at most this long."""
        self._is_shutting_down = True
        if self._in_progress:
            await asyncio.wait(set(self._in_progress), timeout=seconds)

    def close(self) -> None:
        """Wait for threads whose callers have disconnected."""
        self._threads.shutdown()

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers by path, for grpclib."""
        m = messages
        unary: tuple[tuple[str, Method, Any, Any], ...] = (
            ("Prepare", _prepare, m.PrepareRequest, m.MountsResponse),
            ("View", _view, m.PrepareRequest, m.MountsResponse),
            ("Mounts", _mounts, m.MountsRequest, m.MountsResponse),
            ("Commit", _commit, m.CommitRequest, m.Empty),
            ("Remove", _remove, m.RemoveRequest, m.Empty),
            ("Stat", _stat, m.StatRequest, m.InfoResponse),
            ("Update", _update, m.UpdateRequest, m.InfoResponse),
            ("Usage", _usage, m.UsageRequest, m.UsageResponse),
            ("Cleanup", _cleanup, m.CleanupRequest, m.Empty),
        )
        handlers = {
            name: Handler(self._tracked(self._unary(name, method)), Cardinality.UNARY_UNARY, request, response)
            for name, method, request, response in unary
        }
        listing = self._tracked(self._list)
        handlers["List"] = Handler(listing, Cardinality.UNARY_STREAM, m.ListRequest, m.ListResponse)
        d = diff_messages
        differ = {
            name: Handler(self._tracked(self._diff(name, call)), Cardinality.UNARY_UNARY, request, response)
            for name, call, request, response in (
                ("Diff", self._differ.diff, d.DiffRequest, d.DiffResponse),
                ("Apply", self._differ.apply, d.ApplyRequest, d.ApplyResponse),
            )
        }
        services = {messages.SERVICE: handlers, d.SERVICE: differ}
        return {f"/{service}/{name}": handler for service, all_ in services.items() for name, handler in all_.items()}

    def _tracked(self, handle: Handle) -> Handle:
        """Return a handler whose calls `drain` waits for."""

        async def tracked(stream: Stream[Any, Any]) -> None:
            task = asyncio.current_task()
            assert task is not None  # a running coroutine always belongs to a task
            self._in_progress.add(task)
            try:
                await handle(stream)
            finally:
                self._in_progress.discard(task)

        return tracked

    def _unary(self, name: str, method: Method) -> Handle:
        async def handle(stream: Stream[Any, Any]) -> None:
            if (request := await _received(stream)) is not None:
                await stream.send_message(await self._call(name, method, request))

        return handle

    async def _list(self, stream: Stream[Any, Any]) -> None:
        if (request := await _received(stream)) is None:
            return
        # The whole list has been read from the ledger before this sends anything: a slow client blocks nothing.
        found = iter(await self._call("List", _list, request))
        while piece := list(islice(found, _INFOS)):
            await stream.send_message(messages.ListResponse(info=[_info(snapshot) for snapshot in piece]))

    def _diff(self, name: str, call: DiffCall) -> Handle:
        async def handle(stream: Stream[Any, Any]) -> None:
            if (request := await _received(stream)) is not None:
                headers = {key: value for key, value in (stream.metadata or {}).items() if isinstance(value, str)}
                await stream.send_message(await self._translated(name, "", lambda: call(request, headers)))

        return handle

    async def _call(self, name: str, method: Method, request: Any) -> Any:
        """Run a method in a thread and return its response. Raise errors as GRPCError."""

        async def call() -> Any:
            return await self._in_thread(method, await self._snapshotter(request.snapshotter), request)

        return await self._translated(name, f"{request.snapshotter} {getattr(request, 'key', '')!r} ", call)

    async def _translated(self, name: str, subject: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call, log it and return the response. Raise errors as GRPCError."""
        started = time.monotonic()
        outcome = "done"
        try:
            if self._is_shutting_down:
                raise Unavailable("dmthin is shutting down", hint="try again after its restart")
            return await call()
        except NextDiffer as error:
            outcome = f"left to the next differ: {error}"
            raise GRPCError(Status.UNIMPLEMENTED, _shortened(f"not dmthin's: {error}")) from None
        except DmthinError as error:
            outcome = f"failed: {error}"
            raise GRPCError(Status[error.status.grpc], _shortened(str(error))) from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = "crashed"
            logger.exception("%s", name)
            text = f"this is a bug in dmthin: {type(error).__name__}: {error}"
            raise GRPCError(Status.INTERNAL, _shortened(text)) from None
        finally:
            level = logging.WARNING if outcome.startswith("failed") else logging.DEBUG
            milliseconds = (time.monotonic() - started) * 1000
            logger.log(level, "%s %stook=%.1fms %s", name, subject, milliseconds, outcome)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _opened(self) -> list[Snapshotter]:
        """Return the snapshotters. Raise what opening them raises."""
        return await asyncio.shield(self._opening)

    async def _snapshotter(self, name: str) -> Snapshotter:
        """Return the snapshotter of that name. Raise InvalidValue, and what opening the snapshotters raises."""
        snapshotters = {found.name: found for found in await self._opened()}
        if name not in snapshotters:
            known = ", ".join(snapshotters)
            raise InvalidValue(f"unknown snapshotter {name!r}", hint=f"this daemon serves {known}")
        return snapshotters[name]


async def _received(stream: Stream[Any, Any]) -> Any:
    """Return the request, None if the client has disconnected. Raise GRPCError."""
    try:
        return await stream.recv_message()
    except DecodeError as error:
        logger.warning("cannot decode a request: %s", error)
        raise GRPCError(Status.INTERNAL, f"cannot decode the request: {error}") from None


def _shortened(text: str) -> str:
    """Return the text, without its middle if it is too long to be sent."""
    short, kept = text, len(text)
    while len(quote(short)) > _MESSAGE_BYTES:
        kept = kept * 3 // 4
        short = f"{text[: kept // 2]} ... {text[-(kept // 2) :]}"
    return short


def _prepare(snapshotter: Snapshotter, request: Any) -> Any:
    return _mounted(snapshotter.prepare(request.key, request.parent, dict(request.labels)))


def _view(snapshotter: Snapshotter, request: Any) -> Any:
    return _mounted(snapshotter.prepare(request.key, request.parent, dict(request.labels), view=True))


def _mounts(snapshotter: Snapshotter, request: Any) -> Any:
    return _mounted(snapshotter.mounts(request.key))


def _commit(snapshotter: Snapshotter, request: Any) -> Any:
    snapshotter.commit(request.name, request.key, dict(request.labels), request.parent)
    return messages.Empty()


def _remove(snapshotter: Snapshotter, request: Any) -> Any:
    snapshotter.remove(request.key)
    return messages.Empty()


def _stat(snapshotter: Snapshotter, request: Any) -> Any:
    return messages.InfoResponse(info=_info(snapshotter.stat(request.key)))


def _update(snapshotter: Snapshotter, request: Any) -> Any:
    info = request.info
    snapshot = snapshotter.update(info.name, dict(info.labels), list(request.update_mask.paths))
    return messages.InfoResponse(info=_info(snapshot))


def _list(snapshotter: Snapshotter, request: Any) -> list[Snapshot]:
    return list(snapshotter.list(list(request.filters)))


def _usage(snapshotter: Snapshotter, request: Any) -> Any:
    size, inodes = snapshotter.usage(request.key)
    return messages.UsageResponse(size=size, inodes=inodes)


def _cleanup(snapshotter: Snapshotter, _: Any) -> Any:
    snapshotter.cleanup()
    return messages.Empty()


def _mounted(mount: MountSpec) -> Any:
    one = messages.Mount(type=mount.type, source=mount.source, options=mount.options)
    return messages.MountsResponse(mounts=[one])


def _info(snapshot: Snapshot) -> Any:
    return messages.Info(
        name=snapshot.key,
        parent=snapshot.parent,
        kind=_KINDS[snapshot.kind],
        created_at=_timestamp(snapshot.created),
        updated_at=_timestamp(snapshot.updated),
        labels=snapshot.labels,
    )


def _timestamp(nanoseconds: int) -> Any:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return messages.Timestamp(seconds=seconds, nanos=nanos)
