"""The graphdriver plugin protocol over HTTP: dockerd posts a request to /GraphDriver.NAME and gets JSON or a tar.

An error is a JSON object with `Err`, which dockerd shows to its user verbatim, and status 200. Only Diff reports errors
by another status, or by aborting the connection if part of its tar has been sent.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, TypeVar

from aiohttp import web

from dmthin.blocking import entered
from dmthin.docker import streams
from dmthin.docker.driver import Driver
from dmthin.docker.protocol import (
    CONTENT_TYPE,
    LayerRequest,
    check_id,
    parse_init,
    parse_layer,
    parse_object,
)
from dmthin.errors import DmthinError, InvalidValue
from dmthin.kernel import block
from dmthin.layers.job import Job, Verb
from dmthin.store.state.model import Kind

logger = logging.getLogger(__name__)

_THREADS = 64
_MAX_REQUEST = 4 << 20
"""Limit in bytes of a JSON request; dockerd's largest is Init with its options."""

_MAINTENANCE_SECONDS = 5.0
_SHOWN = 300
"""Bytes of a request in a log line."""

T = TypeVar("T")
Answer = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DockerFrontEnd:
    """The HTTP application for one dockerd, and the driver's periodic maintenance."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._threads = ThreadPoolExecutor(_THREADS, "docker")
        self._maintenance: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """Return the application to serve on dockerd's socket."""
        application = web.Application(client_max_size=_MAX_REQUEST, middlewares=[_log_and_translate])
        calls: dict[str, Handler] = {
            "Plugin.Activate": self._activate,
            "GraphDriver.Init": self._json(self._init),
            "GraphDriver.Capabilities": self._capabilities,
            "GraphDriver.Create": self._json(lambda body: self._create(body, Kind.IMAGE)),
            "GraphDriver.CreateReadWrite": self._json(lambda body: self._create(body, Kind.CONTAINER)),
            "GraphDriver.Remove": self._json(self._remove),
            "GraphDriver.Get": self._json(self._get),
            "GraphDriver.Put": self._json(self._put),
            "GraphDriver.Exists": self._json(self._exists),
            "GraphDriver.Status": self._json(self._status),
            "GraphDriver.GetMetadata": self._json(self._metadata),
            "GraphDriver.Cleanup": self._json(self._cleanup),
            "GraphDriver.Diff": self._diff,
            "GraphDriver.Changes": self._changes,
            "GraphDriver.ApplyDiff": self._apply_diff,
            "GraphDriver.DiffSize": self._diff_size,
        }
        application.add_routes([web.post(f"/{name}", handler) for name, handler in calls.items()])
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._stop)
        return application

    async def _start(self, _: web.Application) -> None:
        await self._in_thread(self._driver.restore)
        self._maintenance = asyncio.create_task(self._maintain())

    async def _stop(self, _: web.Application) -> None:
        if self._maintenance is not None:
            self._maintenance.cancel()
        await asyncio.to_thread(self._threads.shutdown)
        self._driver.close()

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(_MAINTENANCE_SECONDS)
            try:
                await self._in_thread(self._driver.maintain)
            except DmthinError as error:
                logger.debug("maintenance failed: %s", error)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _json(self, call: Callable[[bytes], Answer]) -> Handler:
        """Return a handler that reads the body and runs `call` with it in a thread."""

        async def handle(request: web.Request) -> web.Response:
            body = await _read(request)
            return _answer(await self._in_thread(call, body))

        return handle

    async def _activate(self, request: web.Request) -> web.Response:
        await request.read()
        return _answer({"Implements": ["GraphDriver"]})

    async def _capabilities(self, request: web.Request) -> web.Response:
        await request.read()
        return _answer({"Capabilities": {"ReproducesExactDiffs": False}})

    def _init(self, body: bytes) -> Answer:
        self._driver.init(parse_init(parse_object(body)))
        return {}

    def _create(self, body: bytes, kind: Kind) -> Answer:
        self._driver.create(parse_layer(parse_object(body)), kind)
        return {}

    def _remove(self, body: bytes) -> Answer:
        self._driver.remove(_layer(body).id)
        return {}

    def _get(self, body: bytes) -> Answer:
        return {"Dir": self._driver.get(_layer(body))}

    def _put(self, body: bytes) -> Answer:
        self._driver.put(_layer(body).id)
        return {}

    def _exists(self, body: bytes) -> Answer:
        return {"Exists": self._driver.exists(_layer(body).id)}

    def _status(self, _: bytes) -> Answer:
        return {"Status": self._driver.status()}

    def _metadata(self, body: bytes) -> Answer:
        return {"Metadata": self._driver.metadata(_layer(body).id)}

    def _cleanup(self, _: bytes) -> Answer:
        self._driver.cleanup()
        return {}

    async def _apply_diff(self, request: web.Request) -> web.StreamResponse:
        """Unpack the body over a layer. Raise InvalidValue for an empty body, and what the worker reports."""
        body = streams.RequestBody(request.content, request.transport)
        try:
            layer = check_id(request.query.get("id", ""))
            if not await body.has_data():
                raise InvalidValue(
                    f"the tar of layer {layer} is empty",
                    hint="dockerd repeats a failed request without its body: try again",
                )
            async with self._job(Verb.APPLY, layer) as job:
                size = await streams.apply(job, body)
                await self._in_thread(block.sync_root, job.root, layer)
            logger.info("applied a diff to %s: %d bytes in files", layer, size)
            return _answer({"Size": size})
        finally:
            await body.drain()  # otherwise dockerd's sender would block

    async def _diff(self, request: web.Request) -> web.StreamResponse:
        try:
            layer = _layer(await _read(request))
            async with self._compared(Verb.DIFF, layer) as job:
                return await _streamed(request, streams.produce(job), "application/x-tar")
        except DmthinError as error:
            return _failed(request, error, error.status.http)

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        layer = _layer(await _read(request))
        async with self._compared(Verb.CHANGES, layer) as job:
            return await _streamed(request, streams.produce(job), CONTENT_TYPE)

    async def _diff_size(self, request: web.Request) -> web.StreamResponse:
        layer = _layer(await _read(request))
        async with self._compared(Verb.SIZE, layer) as job:
            return _answer({"Size": await streams.measure(job)})

    @asynccontextmanager
    async def _compared(self, verb: Verb, layer: LayerRequest) -> AsyncIterator[Job]:
        """Yield a job on a layer and its parent."""
        async with self._job(verb, layer.id, layer.parent) as job:
            yield job

    @asynccontextmanager
    async def _job(self, verb: Verb, layer: str, parent: str = "") -> AsyncIterator[Job]:
        """Yield a job whose layers stay open while the block runs. No lock is held meanwhile."""
        async with AsyncExitStack() as stack:
            root = await stack.enter_async_context(entered(self._driver.opened(layer), self._in_thread))
            below = None
            if parent:
                below = await stack.enter_async_context(entered(self._driver.opened(parent), self._in_thread))
            uids, gids = self._driver.id_ranges
            yield Job(verb=verb, root=root, parent=below, name=layer, uid_map=uids, gid_map=gids)


@web.middleware
async def _log_and_translate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log each request, and translate its error into a response that dockerd understands."""
    started = time.monotonic()
    outcome = "done"
    try:
        return await handler(request)
    except DmthinError as error:
        outcome = f"failed: {error}"
        return _failed(request, error, 200)
    except ConnectionError:
        outcome = "connection lost"
        return web.Response()  # it cannot be sent any more
    except web.HTTPException as error:
        outcome = f"rejected: {error.reason}"
        return web.json_response({"Err": f"{request.path}: {error.reason}"}, status=error.status)
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Exception as error:
        outcome = "failed"
        logger.exception("%s", request.path)
        return web.json_response({"Err": f"this is a bug in dmthin: {type(error).__name__}: {error}"}, status=500)
    finally:
        milliseconds = (time.monotonic() - started) * 1000
        body = request.get("body", b"")[:_SHOWN].decode(errors="replace").strip() or request.query_string
        logger.debug("%s %s took=%.1fms %s", request.path.removeprefix("/"), body, milliseconds, outcome)


def _failed(request: web.Request, error: DmthinError, status: int) -> web.Response:
    call = request.path.removeprefix("/")
    if call == "GraphDriver.Init":  # dockerd logs the reason too, but not in its final message
        call += ": dockerd does not start, and ends with 'driver not supported'"
    logger.error("%s: %s", call, error)
    return _answer({"Err": str(error)}, status)


async def _streamed(request: web.Request, source: AsyncGenerator[bytes, None], content_type: str) -> web.StreamResponse:
    """Send the pieces of `source` as they arrive.

    Raise an error that occurs before the first piece. A later one aborts the connection: the status has been sent.
    """
    async with aclosing(source) as pieces:
        first = await anext(pieces, b"")
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        try:
            await response.write(first)
            async for piece in pieces:
                await response.write(piece)
            await response.write_eof()
        except DmthinError as error:
            logger.error("%s: aborted: %s", request.path.removeprefix("/"), error)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            # dockerd closes the connection once its JSON decoder has the object, which may be before the body's end.
            logger.debug("%s: connection closed by dockerd", request.path.removeprefix("/"))
        return response


async def _read(request: web.Request) -> bytes:
    body = request["body"] = await request.read()
    return body


def _layer(body: bytes) -> LayerRequest:
    return parse_layer(parse_object(body))


def _answer(content: Answer, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(content).encode() + b"\n", status=status, content_type=CONTENT_TYPE)
