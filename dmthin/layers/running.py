"""Workers as processes of an event loop: started for a job, fed and read, killed if the caller gives up."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from dmthin.kernel import process
from dmthin.layers.job import Job

PIECE = 256 << 10
"""Bytes read at a time from a worker's standard output."""

_REPORT_LIMIT = 1 << 16


class Running:
    """A worker that runs. Its standard output must be read to its end before `report` returns."""

    def __init__(self, worker: asyncio.subprocess.Process, report: int) -> None:
        self._worker = worker
        self._report = report

    async def feed(self, piece: bytes) -> bool:
        """Write to the standard input. Return False if the worker has ended; its report has the error."""
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(piece)
            await self._worker.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end_input(self) -> None:
        """Close the standard input."""
        assert self._worker.stdin is not None
        self._worker.stdin.close()

    async def read(self) -> bytes:
        """Return the next bytes of the standard output, b"" at its end."""
        assert self._worker.stdout is not None
        return await self._worker.stdout.read(PIECE)

    async def report(self) -> bytes:
        """Wait for the worker's end, and return its report, which `layers.job` parses."""
        await self._worker.wait()
        return os.read(self._report, _REPORT_LIMIT)


@asynccontextmanager
async def started(job: Job, *, feeds: bool = False, reads: bool = False) -> AsyncIterator[Running]:
    """Start a job's worker. Kill it at the end. `feeds` opens its standard input, `reads` its standard output."""
    report, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            worker = await process.start_worker(
                job.argv(write_end), job.environment(), job.descriptors(write_end), feeds=feeds, reads=reads
            )
        finally:
            os.close(write_end)
        try:
            yield Running(worker, report)
        finally:
            with suppress(ProcessLookupError):
                worker.kill()
            while worker.stdout is not None and await worker.stdout.read(PIECE):
                pass  # asyncio's wait() does not return before the standard output was read to its end
            await worker.wait()
    finally:
        os.close(report)
