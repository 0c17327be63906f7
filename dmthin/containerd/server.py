"""The Snapshots service over gRPC: each call to a snapshotter in a thread, its errors as gRPC's status codes.

grpclib has the transport: it forks with no harm and takes a socket that is listening already.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any
from urllib.parse import quote

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from dmthin.containerd import messages
from dmthin.containerd.snapshotter import Mount, Snapshotter
from dmthin.errors import DmthinError, InvalidValue, Unavailable
from dmthin.store.state.model import Snapshot, SnapshotKind

logger = logging.getLogger(__name__)

_THREADS = 64
_INFOS = 100
"""Snapshots in one message of a List, which containerd's client takes as they come."""

_MESSAGE_BYTES = 4096
"""Of an error's text as it is sent. Clients drop headers beyond 8K, the status with them, and keys may be long."""

_KINDS = {SnapshotKind.VIEW: 1, SnapshotKind.ACTIVE: 2, SnapshotKind.COMMITTED: 3}

Call = Callable[[Snapshotter, Any], Any]
Handle = Callable[[Stream[Any, Any]], Awaitable[None]]


class ContainerdFace:
    """The face to one containerd, whose calls wait for the snapshotters that are still `opening`."""

    def __init__(self, opening: asyncio.Future[list[Snapshotter]]) -> None:
        self._opening = opening
        self._threads = ThreadPoolExecutor(_THREADS, "containerd")
        self._under_way: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def drain(self, seconds: float) -> None:
        """Take no more calls, and give those under way this long to be answered."""
        self._ending = True
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)

    def close(self) -> None:
        """Wait for what is still done for callers who have gone."""
        self._threads.shutdown()

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib asks for: the methods by their paths."""
        m = messages
        unary: tuple[tuple[str, Call, Any, Any], ...] = (
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
            name: Handler(self._counted(self._unary(name, call)), Cardinality.UNARY_UNARY, request, reply)
            for name, call, request, reply in unary
        }
        listing = self._counted(self._list)
        handlers["List"] = Handler(listing, Cardinality.UNARY_STREAM, m.ListRequest, m.ListResponse)
        return {f"/{messages.SERVICE}/{name}": handler for name, handler in handlers.items()}

    def _counted(self, handle: Handle) -> Handle:
        """The same handler, whose calls `drain` waits for."""

        async def counted(stream: Stream[Any, Any]) -> None:
            task = asyncio.current_task()
            assert task is not None  # a coroutine that runs is some task's
            self._under_way.add(task)
            try:
                await handle(stream)
            finally:
                self._under_way.discard(task)

        return counted

    def _unary(self, name: str, call: Call) -> Handle:
        async def handle(stream: Stream[Any, Any]) -> None:
            if (request := await _received(stream)) is not None:
                await stream.send_message(await self._called(name, call, request))

        return handle

    async def _list(self, stream: Stream[Any, Any]) -> None:
        if (request := await _received(stream)) is None:
            return
        # What is listed was read at once, so nothing is held while a slow client takes it.
        found = iter(await self._called("List", _list, request))
        while piece := list(islice(found, _INFOS)):
            await stream.send_message(messages.ListResponse(info=[_info(snapshot) for snapshot in piece]))

    async def _called(self, name: str, call: Call, request: Any) -> Any:
        """The answer to a request; an error is raised as containerd knows it, and everything is logged."""
        started = time.monotonic()
        outcome = "done"
        try:
            if self._ending:
                raise Unavailable("dmthin is ending", hint="try again once it is back")
            snapshotter = await self._snapshotter(request.snapshotter)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, snapshotter, request)
        except DmthinError as error:
            outcome = f"refused: {error}"
            raise GRPCError(Status[error.status.grpc], _shortened(str(error))) from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = "failed"
            logger.exception("%s", name)
            text = f"this is a bug in dmthin: {type(error).__name__}: {error}"
            raise GRPCError(Status.INTERNAL, _shortened(text)) from None
        finally:
            level = logging.WARNING if outcome.startswith("refused") else logging.DEBUG
            milliseconds = (time.monotonic() - started) * 1000
            key = getattr(request, "key", "")
            logger.log(level, "%s %s %r took=%.1fms %s", name, request.snapshotter, key, milliseconds, outcome)

    async def _snapshotter(self, name: str) -> Snapshotter:
        snapshotters = {found.name: found for found in await asyncio.shield(self._opening)}
        if name not in snapshotters:
            known = ", ".join(snapshotters)
            raise InvalidValue(f"there is no snapshotter {name!r} here", hint=f"known are: {known}")
        return snapshotters[name]


async def _received(stream: Stream[Any, Any]) -> Any:
    """The request, None from a client that has left."""
    try:
        return await stream.recv_message()
    except messages.DecodeError as error:
        logger.warning("a request cannot be read: %s", error)
        raise GRPCError(Status.INTERNAL, f"the request cannot be read: {error}") from None


def _shortened(text: str) -> str:
    """The text without its middle if it is too long to be sent."""
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


def _mounted(mount: Mount) -> Any:
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
