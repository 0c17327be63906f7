"""The daemon: serving front ends on their sockets until a signal, with notifications to systemd."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd.config import SnapshotterConfig
from dmthin.daemon import systemd
from dmthin.daemon.listener import Listener
from dmthin.kernel import priority

logger = logging.getLogger(__name__)

RUN_FOLDER = Path("/run/dmthin")
DOCKER_SOCKET = Path("/run/docker/plugins/dmthin.sock")
CONTAINERD_SOCKET = RUN_FOLDER / "containerd.sock"
CONTAINERD_ADDRESS = Path("/run/containerd/containerd.sock")
_DOCKER, _CONTAINERD = "docker", "containerd"
"""The names of the front ends, equal to the FileDescriptorName= of their systemd socket units."""

_CLIENTS = {_DOCKER: "dockerd", _CONTAINERD: "containerd"}
_TERMINATING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IDLE_SECONDS = 10 * 365 * 86400.0
"""Keep-alive timeout of dockerd's connections: closing an idle one would race with its next request."""

_SHUTDOWN_SECONDS = 20.0
"""Time for requests in progress to finish after a signal, before they are cancelled."""


@dataclass(frozen=True, slots=True)
class FrontEnds:
    """The front ends to serve. `docker` and `containerd` are the paths of their sockets, None to leave one out.

    `snapshotters` are containerd's; `options` are the storage options with which their stores are created and opened.
    `address` is containerd's own socket, where its content store is. `docker_root` is the data root of a dockerd whose
    containers get the sizes that they were created with.
    """

    docker: Path | None = None
    containerd: Path | None = None
    snapshotters: tuple[SnapshotterConfig, ...] = ()
    options: tuple[str, ...] = ()
    address: Path = CONTAINERD_ADDRESS
    docker_root: Path | None = None


def serve(front_ends: FrontEnds) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then finish the requests in progress.

    Raise what `Listener` and `open_snapshotters` raise.
    """
    priority.raise_priority()
    with _listeners(front_ends) as listeners:
        asyncio.run(_serve(front_ends, listeners))


@contextmanager
def _listeners(front_ends: FrontEnds) -> Iterator[Mapping[str, Listener]]:
    """Open the listener of each front end, on the socket that systemd passed for it if there is one."""
    passed = dict(systemd.passed_sockets())
    wanted = {_DOCKER: front_ends.docker, _CONTAINERD: front_ends.containerd}
    with ExitStack() as stack:
        listeners = {}
        for name, path in wanted.items():
            if path is not None:
                listeners[name] = Listener(path, passed.pop(name, None))
                stack.callback(listeners[name].close)
        for unknown in passed.values():
            unknown.close()
        yield listeners


async def _serve(front_ends: FrontEnds, listeners: Mapping[str, Listener]) -> None:
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _TERMINATING:
        loop.add_signal_handler(number, terminated.set)
    async with AsyncExitStack() as stack:
        if _DOCKER in listeners:
            await stack.enter_async_context(_docker(listeners[_DOCKER]))
        if _CONTAINERD in listeners:
            await stack.enter_async_context(_containerd(listeners[_CONTAINERD], front_ends))
        served = ", ".join(f"{_CLIENTS[name]} on {listener.path}" for name, listener in listeners.items())
        systemd.notify("READY=1", f"STATUS=serving {served}")
        logger.info("serving %s", served)
        watchdog = asyncio.create_task(_notify_watchdog())
        await terminated.wait()
        watchdog.cancel()
        logger.info("shutting down")
        systemd.notify("STOPPING=1", "STATUS=finishing requests")


@asynccontextmanager
async def _docker(listener: Listener) -> AsyncIterator[None]:
    from aiohttp import web  # imported only if this front end is served

    from dmthin.docker.driver import Driver
    from dmthin.docker.server import DockerFrontEnd

    front_end = DockerFrontEnd(Driver(RUN_FOLDER / f"{listener.path.stem}.json", systemd.log_place()))
    runner = web.AppRunner(
        front_end.application(), access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener.socket).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _containerd(listener: Listener, front_ends: FrontEnds) -> AsyncIterator[None]:
    from grpclib.server import Server

    from dmthin.containerd.config import open_snapshotters
    from dmthin.containerd.server import ContainerdFrontEnd

    stores = open_snapshotters(front_ends.snapshotters, front_ends.options, front_ends.docker_root)
    opening = asyncio.ensure_future(asyncio.to_thread(stores.__enter__))
    front_end = ContainerdFrontEnd(opening, front_ends.address)
    server = Server([front_end])
    # Accept connections while the stores are being opened, which may run thin_check: containerd drops a connection
    # that is not accepted within a second, but has no such timeout for a call.
    await server.start(sock=listener.socket)
    try:
        await opening
        yield
    finally:
        await front_end.drain(_SHUTDOWN_SECONDS)
        server.close()
        # Wait for the calls that this has cancelled. server.wait_closed() would, from Python 3.12.1 on, wait for the
        # clients to disconnect too, which containerd does not do.
        await front_end.drain(_SHUTDOWN_SECONDS)
        await asyncio.to_thread(front_end.close)
        if not opening.exception():
            await asyncio.to_thread(stores.__exit__, None, None, None)


async def _notify_watchdog() -> None:
    seconds = systemd.watchdog_seconds()
    while seconds is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
