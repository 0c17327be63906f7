"""The daemon: faces on their sockets until a signal ends it, and what systemd wants to know of it."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from dmthin.daemon import systemd
from dmthin.daemon.listener import Listener
from dmthin.docker.driver import Driver
from dmthin.docker.server import DockerFace

logger = logging.getLogger(__name__)

RUN_FOLDER = Path("/run/dmthin")
DOCKER_SOCKET = Path("/run/docker/plugins/dmthin.sock")
DOCKER_NAME = "docker"
"""The FileDescriptorName of dockerd's socket in a systemd socket unit."""

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IDLE_SECONDS = 10 * 365 * 86400.0
"""How long a connection may be idle: dockerd would send its next request just when we close it."""

_GOODBYE_SECONDS = 20.0
"""How long requests may go on after a signal before they are broken off."""


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces to serve: where each listens, None for those not asked for."""

    docker: Path | None = None


def serve(faces: Faces) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; what is under way is ended first. Raises what `Listener` raises."""
    with _sockets(faces) as (docker, path):
        asyncio.run(_serve_docker(docker, path))


@contextmanager
def _sockets(faces: Faces) -> Iterator[tuple[Listener, Path]]:
    passed = dict(systemd.passed_sockets())
    path = faces.docker or DOCKER_SOCKET
    listener = Listener(path, passed.pop(DOCKER_NAME, None))
    for unknown in passed.values():
        unknown.close()
    try:
        yield listener, path
    finally:
        listener.close()


async def _serve_docker(listener: Listener, path: Path) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, ended.set)
    face = DockerFace(Driver(RUN_FOLDER / f"{path.stem}.json"))
    runner = web.AppRunner(
        face.application(), access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=_GOODBYE_SECONDS
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener.socket).start()
        systemd.notify("READY=1", f"STATUS=serving dockerd at {path}")
        logger.info("serving dockerd at %s", path)
        watching = asyncio.create_task(_keep_watchdog_quiet())
        await ended.wait()
        watching.cancel()
        logger.info("ending")
        systemd.notify("STOPPING=1", "STATUS=ending what is under way")
    finally:
        await runner.cleanup()


async def _keep_watchdog_quiet() -> None:
    seconds = systemd.watchdog_seconds()
    while seconds is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
