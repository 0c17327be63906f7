"""Transfer of tars between dockerd's connections and the sandboxed worker that reads or writes them."""

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
"""Limits in seconds of the pause after a piece of less than _SMALL bytes."""


class RequestBody:
    """The body of a request. It must be read to its end even if the request has failed.

    dockerd sends each header, file and padding of a layer as a chunk of its own. Processing each chunk separately costs
    more than unpacking it. So after a small piece, reading from the socket pauses, and more data accumulates there.
    """

    def __init__(self, content: StreamReader, transport: asyncio.Transport | None) -> None:
        self._content = content
        self._transport = transport
        self._pause = _SHORTEST
        self._first = b""

    async def has_data(self) -> bool:
        """Wait for the first piece. Return False if the body is empty."""
        self._first = await self._content.readany()
        return bool(self._first)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body in order."""
        first, self._first = self._first, b""
        if first:
            yield first
        while piece := await self._content.readany():
            yield piece
            await self._coalesce(len(piece))

    async def _coalesce(self, length: int) -> None:
        """Pause reading after a small piece. The pause doubles until pieces are large, and is halved then."""
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
        """Read and discard the rest of the body."""
        while await self._content.readany():
            pass


async def apply(job: Job, body: RequestBody) -> int:
    """Unpack a layer's tar. Return the sum of its file sizes in bytes.

    Raise the error that the worker reports, and ConnectionError.
    """
    async with _started(job, feeds=True) as (running, report):
        stdin = running.stdin
        assert stdin is not None
        async for piece in body.pieces():
            try:
                stdin.write(piece)
                await stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                break  # the worker has ended; its report has the error
        stdin.close()
        return await _result(running, report)


async def produce(job: Job) -> AsyncGenerator[bytes, None]:
    """Yield the output of a job in pieces. The caller must close the generator.

    Raise the error that the worker reports, after the last piece.
    """
    async with _started(job, reads=True) as (running, report):
        assert running.stdout is not None
        while piece := await running.stdout.read(_PIECE):
            yield piece
        await _result(running, report)


async def measure(job: Job) -> int:
    """Return the size that a job reports, in bytes. Raise the error that the worker reports."""
    async with _started(job) as (running, report):
        return await _result(running, report)


@asynccontextmanager
async def _started(
    job: Job, *, feeds: bool = False, reads: bool = False
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Start a job's worker; yield its process and the read end of the pipe for its report. Kill it at the end."""
    report, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            running = await process.start_worker(
                job.argv(write_end), job.environment(), job.descriptors(write_end), feeds=feeds, reads=reads
            )
        finally:
            os.close(write_end)
        try:
            yield running, report
        finally:
            with suppress(ProcessLookupError):
                running.kill()
            while running.stdout is not None and await running.stdout.read(_PIECE):
                pass  # asyncio's wait() does not return before the standard output was read to its end
            await running.wait()
    finally:
        os.close(report)


async def _result(running: asyncio.subprocess.Process, report: int) -> int:
    """Wait for a worker's end, and return the size in its report. Raise the error in it."""
    await running.wait()
    return parse_report(os.read(report, _REPORT_LIMIT))
