"""The graphdriver plugin protocol over HTTP: dockerd posts a call to /GraphDriver.NAME and gets JSON, or a tar.

An error is a JSON object with `Err`, which dockerd shows to its user as it is. Only a Diff must tell its error by
another status than 200, and where its tar has begun, by breaking the connection off.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, TypeVar

from aiohttp import web

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
"""Bytes of a JSON request; dockerd's largest is Init with its options."""

_TIDY_SECONDS = 5.0
_SHOWN = 300
"""Characters of a request that a log line shows."""

T = TypeVar("T")
Answer = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DockerFace:
    """The face to one dockerd: its HTTP application and what goes on beside it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._threads = ThreadPoolExecutor(_THREADS, "docker")
        self._tidying: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """The application, to be served on dockerd's socket."""
        application = web.Application(client_max_size=_MAX_REQUEST, middlewares=[_told])
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
        self._tidying = asyncio.create_task(self._tidy())

    async def _stop(self, _: web.Application) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        await asyncio.to_thread(self._threads.shutdown)
        self._driver.close()

    async def _tidy(self) -> None:
        """Take away what was busy when it was removed, once it no longer is."""
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                await self._in_thread(self._driver.tidy)
            except DmthinError as error:
                logger.debug("nothing tidied: %s", error)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _json(self, call: Callable[[bytes], Answer]) -> Handler:
        """A handler that reads the body, and calls in a thread."""

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
        body = streams.Body(request.content, request.transport)
        try:
            layer = check_id(request.query.get("id", ""))
            if not await body.begins():
                raise InvalidValue(
                    f"the tar of the layer {layer} is empty", hint="dockerd repeats a broken request so: try again"
                )
            async with self._job(Verb.APPLY, layer) as job:
                size = await streams.apply(job, body)
                await self._in_thread(block.sync_root, job.root, layer)
            logger.info("filled %s: %d bytes of files", layer, size)
            return _answer({"Size": size})
        finally:
            await body.drain()  # else dockerd's sender hangs

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
        """A job on a layer and its parent."""
        async with self._job(verb, layer.id, layer.parent) as job:
            yield job

    @asynccontextmanager
    async def _job(self, verb: Verb, layer: str, parent: str = "") -> AsyncIterator[Job]:
        """A job whose layers are open, for as long as it takes; no lock is held meanwhile."""
        async with AsyncExitStack() as stack:
            root = await stack.enter_async_context(self._held(self._driver.opened(layer)))
            below = await stack.enter_async_context(self._held(self._driver.opened(parent))) if parent else None
            uids, gids = self._driver.id_ranges
            yield Job(verb=verb, root=root, parent=below, name=layer, uid_map=uids, gid_map=gids)

    @asynccontextmanager
    async def _held(self, context: AbstractContextManager[T]) -> AsyncIterator[T]:
        """A context that blocks, entered and left in a thread."""
        value = await self._in_thread(context.__enter__)
        try:
            yield value
        finally:
            await asyncio.shield(self._in_thread(context.__exit__, None, None, None))


@web.middleware
async def _told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log each call, and answer its failure in dockerd's form."""
    started = time.monotonic()
    outcome = "done"
    try:
        return await handler(request)
    except DmthinError as error:
        outcome = f"failed: {error}"
        return _failed(request, error, 200)
    except ConnectionError:
        outcome = "broken off by dockerd"
        return web.Response()  # nobody hears it
    except web.HTTPException as error:
        outcome = f"refused: {error.reason}"
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
        said = request.get("said", b"")[:_SHOWN].decode(errors="replace").strip() or request.query_string
        logger.debug("%s %s took=%.1fms %s", request.path.removeprefix("/"), said, milliseconds, outcome)


def _failed(request: web.Request, error: DmthinError, status: int) -> web.Response:
    logger.error("%s: %s", request.path.removeprefix("/"), error)
    return _answer({"Err": str(error)}, status)


async def _streamed(request: web.Request, source: AsyncGenerator[bytes, None], content_type: str) -> web.StreamResponse:
    """Send pieces as they come. A failure before the first is raised; a later one breaks the connection off."""
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
            logger.error("%s: broken off: %s", request.path.removeprefix("/"), error)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            logger.debug("%s: dockerd has read enough", request.path.removeprefix("/"))  # Go's reader of JSON does so
        return response


async def _read(request: web.Request) -> bytes:
    body = request["said"] = await request.read()
    return body


def _layer(body: bytes) -> LayerRequest:
    return parse_layer(parse_object(body))


def _answer(content: Answer, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(content).encode() + b"\n", status=status, content_type=CONTENT_TYPE)
