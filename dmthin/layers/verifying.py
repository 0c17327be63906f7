"""Verification of one applied layer by a worker, and its result in words."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import DmthinError, InvalidValue
from dmthin.layers.job import Job, Verb, parse_report
from dmthin.layers.running import PIECE, started
from dmthin.layers.verify import Findings, parse_findings

_LARGEST_OUTPUT = 1 << 21
"""Bytes of a worker's findings: 300 names of at most about 200 characters, each at most twelve bytes in JSON."""


@dataclass(frozen=True, slots=True)
class VerifiedLayer:
    """A layer, the images that contain it, and what is wrong with it: nothing if `problems` is empty.

    `unchecked` says why the layer could not be compared, empty if it was.
    """

    chain: str
    volume: str
    images: tuple[str, ...]
    problems: tuple[str, ...]
    unchecked: str = ""


def verified(
    chain: str, volume: str, images: tuple[str, ...], problems: Callable[[], tuple[str, ...]]
) -> VerifiedLayer:
    """Return what came of verifying a layer, also if it could not be: the others are to be verified too.

    What cannot be unpacked is a problem, any other error of `problems` says why the layer was not checked.
    """
    try:
        return VerifiedLayer(chain, volume, images, problems())
    except InvalidValue as error:
        return VerifiedLayer(chain, volume, images, (f"what it is compared with cannot be read: {error.message}",))
    except (DmthinError, OSError) as error:
        return VerifiedLayer(chain, volume, images, (), str(error))


def find_problems(verb: Verb, root: int, name: str, source: Path, digest: str) -> tuple[str, ...]:
    """Compare the tree at a descriptor of its root with the tar in a file, or the record of it, as the verb says.

    Return what is wrong, a sentence for each. `digest` is that of the tar. Raise the error that the worker reports,
    InvalidValue, OSError.
    """
    findings = asyncio.run(_findings(Job(verb, root, name, digest=verb is Verb.VERIFY), source))
    problems = [f"{path} should have been deleted" for path in findings.stale]
    problems += [f"{path} is missing, or has another size" for path in findings.missing]
    problems += [f"{path} has another content or type" for path in findings.changed]
    if findings.digest not in ("", digest):
        whole = "the content of its files is not that of its tar"
        problems.append(f"{source} is not the tar of {digest}" if verb is Verb.VERIFY else whole)
    return tuple(problems)


async def _findings(job: Job, source: Path) -> Findings:
    """Let a worker compare a layer with a file. Raise the error that it reports, InvalidValue, OSError."""
    output = b""
    async with started(job, feeds=True, reads=True) as running:

        async def feed() -> None:
            try:
                with source.open("rb") as file:
                    while (piece := file.read(PIECE)) and await running.feed(piece):
                        pass
            finally:
                running.end_input()  # without it the worker would wait for more, and we for the worker

        feeding = asyncio.create_task(feed())
        while piece := await running.read():
            output = (output + piece)[:_LARGEST_OUTPUT]
        await feeding
        parse_report(await running.report())
    return parse_findings(output)
