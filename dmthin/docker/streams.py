"""Transfer of tars between dockerd's connections and the sandboxed worker that reads or writes them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from aiohttp import StreamReader

from dmthin.layers.job import Job, parse_report
from dmthin.layers.running import started

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
    async with started(job, feeds=True) as running:
        async for piece in body.pieces():
            if not await running.feed(piece):
                break
        running.end_input()
        return parse_report(await running.report())


async def produce(job: Job) -> AsyncGenerator[bytes, None]:
    """Yield the output of a job in pieces. The caller must close the generator.

    Raise the error that the worker reports, after the last piece.
    """
    async with started(job, reads=True) as running:
        while piece := await running.read():
            yield piece
        parse_report(await running.report())


async def measure(job: Job) -> int:
    """Return the size that a job reports, in bytes. Raise the error that the worker reports."""
    async with started(job) as running:
        return parse_report(await running.report())
