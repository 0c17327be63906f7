"""The daemon: faces on their sockets until a signal ends it, and what systemd wants to know of it."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd.config import SnapshotterPlan
from dmthin.daemon import systemd
from dmthin.daemon.listener import Listener
from dmthin.kernel import priority

logger = logging.getLogger(__name__)

RUN_FOLDER = Path("/run/dmthin")
DOCKER_SOCKET = Path("/run/docker/plugins/dmthin.sock")
CONTAINERD_SOCKET = RUN_FOLDER / "containerd.sock"
_DOCKER, _CONTAINERD = "docker", "containerd"
"""The names of the faces, and the FileDescriptorName of each one's socket in a systemd socket unit."""

_CLIENTS = {_DOCKER: "dockerd", _CONTAINERD: "containerd"}
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IDLE_SECONDS = 10 * 365 * 86400.0
"""How long a connection may be idle: dockerd would send its next request just when we close it."""

_GOODBYE_SECONDS = 20.0
"""How long requests may go on after a signal before they are broken off."""


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces to serve: where each listens, None for those not asked for.

    `snapshotters` are those of the face to containerd, whose stores are made and opened with `options`.
    """

    docker: Path | None = None
    containerd: Path | None = None
    snapshotters: tuple[SnapshotterPlan, ...] = ()
    options: tuple[str, ...] = ()


def serve(faces: Faces) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; what is under way is ended first.

    Raises what `Listener` and the opening of containerd's stores raise.
    """
    priority.raise_priority()
    with _listeners(faces) as listeners:
        asyncio.run(_serve(faces, listeners))


@contextmanager
def _listeners(faces: Faces) -> Iterator[Mapping[str, Listener]]:
    passed = dict(systemd.passed_sockets())
    wanted = {_DOCKER: faces.docker, _CONTAINERD: faces.containerd}
    with ExitStack() as stack:
        listeners = {}
        for name, path in wanted.items():
            if path is not None:
                listeners[name] = Listener(path, passed.pop(name, None))
                stack.callback(listeners[name].close)
        for unknown in passed.values():
            unknown.close()
        yield listeners


async def _serve(faces: Faces, listeners: Mapping[str, Listener]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        if _DOCKER in listeners:
            await stack.enter_async_context(_docker(listeners[_DOCKER]))
        if _CONTAINERD in listeners:
            await stack.enter_async_context(_containerd(listeners[_CONTAINERD], faces))
        served = ", ".join(f"{_CLIENTS[name]} at {listener.path}" for name, listener in listeners.items())
        systemd.notify("READY=1", f"STATUS=serving {served}")
        logger.info("serving %s", served)
        watching = asyncio.create_task(_keep_watchdog_quiet())
        await ended.wait()
        watching.cancel()
        logger.info("ending")
        systemd.notify("STOPPING=1", "STATUS=ending what is under way")


@asynccontextmanager
async def _docker(listener: Listener) -> AsyncIterator[None]:
    from aiohttp import web  # each face's libraries only where it is served

    from dmthin.docker.driver import Driver
    from dmthin.docker.server import DockerFace

    face = DockerFace(Driver(RUN_FOLDER / f"{listener.path.stem}.json"))
    runner = web.AppRunner(
        face.application(), access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=_GOODBYE_SECONDS
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener.socket).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _containerd(listener: Listener, faces: Faces) -> AsyncIterator[None]:
    from grpclib.server import Server

    from dmthin.containerd.config import opened
    from dmthin.containerd.server import ContainerdFace

    stores = opened(faces.snapshotters, faces.options)
    opening = asyncio.ensure_future(asyncio.to_thread(stores.__enter__))
    face = ContainerdFace(opening)
    server = Server([face])
    # containerd gives up a connection that is not answered within a second; a call on one may take its time.
    await server.start(sock=listener.socket)
    try:
        await opening
        yield
    finally:
        await face.drain(_GOODBYE_SECONDS)
        server.close()
        await server.wait_closed()
        await asyncio.to_thread(face.close)
        if not opening.exception():
            await asyncio.to_thread(stores.__exit__, None, None, None)


async def _keep_watchdog_quiet() -> None:
    seconds = systemd.watchdog_seconds()
    while seconds is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
