"""Tars between dockerd and the confined process that reads or writes them, piece by piece."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import StreamReader

from dmthin.kernel import process
from dmthin.layers.job import Job, parse_report

_PIECE = 256 << 10
_REPORT_LIMIT = 1 << 16

_SMALL = 16 << 10
_SHORTEST, _LONGEST = 0.001, 0.016
"""Seconds for which pieces smaller than that are let gather."""


class Body:
    """A request's body, which must be read to its end whatever becomes of the request.

    dockerd sends each header, file and padding of a layer as a chunk of its own. To take them one by one costs more
    than to unpack them, so while pieces are small they are let gather in the socket.
    """

    def __init__(self, content: StreamReader, transport: asyncio.Transport | None) -> None:
        self._content = content
        self._transport = transport
        self._pause = _SHORTEST
        self._first = b""

    async def begins(self) -> bool:
        """Whether there is a first byte."""
        self._first = await self._content.readany()
        return bool(self._first)

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, in order."""
        first, self._first = self._first, b""
        if first:
            yield first
        while piece := await self._content.readany():
            yield piece
            await self._let_gather(len(piece))

    async def _let_gather(self, length: int) -> None:
        """Wait after a small piece; longer the next time, until pieces are large enough."""
        if length >= _SMALL:
            self._pause = max(self._pause / 2, _SHORTEST)
        elif self._transport is not None and not self._content.is_eof():
            self._transport.pause_reading()
            try:
                await asyncio.sleep(self._pause)
            finally:
                self._transport.resume_reading()
            self._pause = min(self._pause * 2, _LONGEST)

    async def drain(self) -> None:
        """Read what is left."""
        while await self._content.readany():
            pass


async def apply(job: Job, body: Body) -> int:
    """Unpack a layer's tar; the bytes of its files. Raises what the unpacker does, and ConnectionError."""
    async with _started(job, feeds=True) as (running, report):
        stdin = running.stdin
        assert stdin is not None
        async for piece in body.pieces():
            try:
                stdin.write(piece)
                await stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                break  # the report says why it ended
        stdin.close()
        return await _result(running, report)


async def produce(job: Job) -> AsyncGenerator[bytes, None]:
    """What a job writes, in pieces. Raises what the job reports, after the last of them. To be closed in any case."""
    async with _started(job, reads=True) as (running, report):
        assert running.stdout is not None
        while piece := await running.stdout.read(_PIECE):
            yield piece
        await _result(running, report)


async def measure(job: Job) -> int:
    """The bytes that a job counts."""
    async with _started(job) as (running, report):
        return await _result(running, report)


@asynccontextmanager
async def _started(
    job: Job, *, feeds: bool = False, reads: bool = False
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A job's process and the descriptor of its report; the process is dead in the end."""
    report, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            running = await process.start_worker(
                job.argv(theirs), job.environment(), job.descriptors(theirs), feeds=feeds, reads=reads
            )
        finally:
            os.close(theirs)
        try:
            yield running, report
        finally:
            with suppress(ProcessLookupError):
                running.kill()
            while running.stdout is not None and await running.stdout.read(_PIECE):
                pass  # asyncio learns of its end only while it reads
            await running.wait()
    finally:
        os.close(report)


async def _result(running: asyncio.subprocess.Process, report: int) -> int:
    """What a job reports at its end."""
    await running.wait()
    return parse_report(os.read(report, _REPORT_LIMIT))
