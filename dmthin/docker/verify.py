"""Verification of dockerd's layers: each is compared with the tar that dockerd loaded, pulled or committed."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmthin.docker.records import DockerRecords, LayerRecord
from dmthin.errors import NotFound
from dmthin.layers.job import Job, Verb, parse_report
from dmthin.layers.running import PIECE, started
from dmthin.layers.verify import Findings, parse_findings
from dmthin.store.store import Store

_LARGEST_OUTPUT = 1 << 20
"""Bytes of a worker's findings: 200 names of at most 200 characters each, in JSON."""


@dataclass(frozen=True, slots=True)
class VerifiedLayer:
    """A layer, the images that contain it, and what is wrong with it: nothing if `problems` is empty."""

    layer: LayerRecord
    images: tuple[str, ...]
    problems: tuple[str, ...]


def verify_layers(store: Store, names: frozenset[str] = frozenset()) -> Iterator[VerifiedLayer]:
    """Verify the layers of the images with these names, of all images without any; yield each when it is done.

    Raise NotFound for a store that is not a dockerd's, or a name of no image; and what mounting a layer raises.
    """
    records = DockerRecords(store.layout.root)
    images = records.images()
    known = {name for names_of_one in images.values() for name in names_of_one}
    wanted = {name if ":" in name or name in known else f"{name}:latest" for name in names}
    if unknown := sorted(wanted - known):
        raise NotFound(f"dockerd has no image {unknown[0]}", hint="run: docker images")
    for layer in records.layers():
        users = tuple(sorted(images.get(layer.chain, ())))
        if not wanted or wanted.intersection(users):
            yield VerifiedLayer(layer, users, _problems(store, layer))


def _problems(store: Store, layer: LayerRecord) -> tuple[str, ...]:
    """Return what is wrong with a layer, a sentence for each."""
    if store.ledger.find(layer.volume) is None:
        return ("its volume is missing",)
    if not layer.tar_split.is_file():
        return ("dockerd's record of its tar is missing",)
    with store.layers.opened(layer.volume) as root:
        job = Job(Verb.VERIFY, root, f"layer {layer.chain[7:19]}")
        findings = asyncio.run(_findings(job, layer.tar_split))
    problems = [f"{name} should have been deleted" for name in findings.stale]
    problems += [f"{name} is missing, or has another size" for name in findings.missing]
    if findings.digest not in ("", layer.diff):
        problems.append("the content of its files is not that of its tar")
    return tuple(problems)


async def _findings(job: Job, record: Path) -> Findings:
    """Let a worker compare a layer with a record. Raise the error that it reports, and InvalidValue."""
    output = b""
    async with started(job, feeds=True, reads=True) as running:

        async def feed() -> None:
            with record.open("rb") as file:
                while (piece := file.read(PIECE)) and await running.feed(piece):
                    pass
            running.end_input()

        feeding = asyncio.create_task(feed())
        while piece := await running.read():
            output = (output + piece)[:_LARGEST_OUTPUT]
        await feeding
        parse_report(await running.report())
    return parse_findings(output)
