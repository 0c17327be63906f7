"""A layer's tar on its way from dockerd's connection: whole and in order, however it is cut."""

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from dmthin.docker import streams
from dmthin.docker.streams import RequestBody
from dmthin.layers.running import Running

HEAD = b"POST / HTTP/1.1\r\nHost: plugin\r\nTransfer-Encoding: chunked\r\n\r\n"


def received(path: Path, send: Callable[[socket.socket], object]) -> list[bytes]:
    """The pieces of a body that `send` writes to a connection, and after them what broke it off."""
    pieces: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        body = RequestBody(request.content, request.transport)
        assert await body.has_data()
        try:
            async for piece in body.pieces():
                pieces.append(piece)  # so that what came before the end is kept
        except ConnectionError as error:
            pieces.append(type(error).__name__.encode())
        return web.Response()

    def client() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            connection.sendall(HEAD)
            send(connection)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    async def serve() -> None:
        application = web.Application()
        application.add_routes([web.post("/", take)])
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.UnixSite(runner, path).start()
            await asyncio.to_thread(client)
        finally:
            await runner.cleanup()

    asyncio.run(serve())
    return pieces


def chunks(lengths: Iterator[int], seed: int = 1) -> list[bytes]:
    randomness = random.Random(seed)
    return [randomness.randbytes(length) for length in lengths]


def framed(chunk: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([512, 800, 224] * 1000, id="a layer of small files"),
        pytest.param([512, 300_000, 64] * 20, id="of large ones"),
        pytest.param([random.Random(2).choice((1, 512, 9000, 70_000)) for _ in range(400)], id="of all kinds"),
        pytest.param([1], id="one byte"),
    ],
)
def test_every_byte_comes_in_order(tmp_path: Path, lengths: list[int]) -> None:
    sent = chunks(iter(lengths))

    def send(connection: socket.socket) -> None:
        for chunk in sent:
            connection.sendall(framed(chunk))
        connection.sendall(framed(b""))

    assert b"".join(received(tmp_path / "socket", send)) == b"".join(sent)


def test_small_chunks_are_taken_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come while the reader pauses are one piece."""
    batches = [chunks(iter([100] * 100), seed) for seed in range(20)]
    has_data, reads, sent = RequestBody.has_data, threading.Semaphore(0), threading.Semaphore(0)
    pauses: list[float] = []

    async def has_begun(body: RequestBody) -> bool:
        begun = await has_data(body)
        reads.release()
        return begun

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        reads.release()
        await asyncio.to_thread(sent.acquire)

    def send(connection: socket.socket) -> None:
        connection.sendall(framed(b"the head"))
        reads.acquire()
        connection.sendall(framed(b"the first"))
        for batch in (*batches, [b""]):
            reads.acquire()
            for chunk in batch:
                connection.sendall(framed(chunk))
            sent.release()

    monkeypatch.setattr(RequestBody, "has_data", has_begun)
    monkeypatch.setattr(streams, "asyncio", SimpleNamespace(sleep=pause))
    pieces = received(tmp_path / "socket", send)
    assert pieces == [b"the head", b"the first", *map(b"".join, batches)]
    assert pauses[:6] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.016]
    assert max(pauses) == 0.016


def test_a_sender_that_leaves_in_the_middle(tmp_path: Path) -> None:
    sent = chunks(iter([512] * 100))

    def send(connection: socket.socket) -> None:
        for chunk in sent:
            connection.sendall(framed(chunk))

    *pieces, end = received(tmp_path / "socket", send)
    assert pieces
    assert b"".join(sent).startswith(b"".join(pieces))
    assert end.endswith(b"Error")


def test_a_sender_that_is_gone_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the tar gets no end of it, and would wait for that for ever."""

    class Broken:
        async def pieces(self) -> AsyncIterator[bytes]:
            yield b"the first"
            raise ConnectionResetError

    @asynccontextmanager
    async def started(*_: object, **__: object) -> AsyncIterator[Running]:
        running = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            yield Running(running, -1)
        finally:
            running.kill()
            await running.wait()

    async def apply() -> None:
        job: Any = None
        body: Any = Broken()
        await asyncio.wait_for(streams.apply(job, body), 20)

    monkeypatch.setattr(streams, "started", started)
    with pytest.raises(ConnectionResetError):
        asyncio.run(apply())
