"""The pool's metadata, read by thin-provisioning-tools: thin_check(8), thin_ls(8), thin_delta(8).

The functions that read the metadata of a live pool need a metadata snapshot of it, which the caller holds. All raise
Unavailable (no such program), ToolFailed, and TimeLimit after half an hour.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import NeedsRepair, ToolFailed
from dmthin.kernel import process

_SECONDS = 1800.0
_ADDED = re.compile(r'<(?:different|right_only)\b[^>]*\blength="(\d+)"')


@dataclass(frozen=True, slots=True)
class Usage:
    """The data blocks that one volume maps: exclusive ones, and those that it shares with others."""

    exclusive_blocks: int
    shared_blocks: int


def check(metadata: Path) -> None:
    """Run thin_check on the metadata of an inactive pool. Raise NeedsRepair with its findings."""
    try:
        process.run("thin_check", "-q", str(metadata), timeout=_SECONDS)
    except ToolFailed as failure:
        raise NeedsRepair(
            f"the pool's metadata is damaged: {failure.message}", hint="keep a copy of it, then run thin_repair"
        ) from None


def device_ids(metadata: Path) -> set[int]:
    """Return the device ids of all volumes, from a metadata snapshot."""
    return {device_id for device_id, *_ in _thin_ls(metadata, "DEV")}


def usage(metadata: Path) -> dict[int, Usage]:
    """Return the use of every volume by device id, from a metadata snapshot."""
    rows = _thin_ls(metadata, "DEV,EXCLUSIVE_BLOCKS,SHARED_BLOCKS")
    return {device_id: Usage(exclusive, shared) for device_id, exclusive, shared in rows}


def added_blocks(metadata: Path, before: int, after: int) -> int:
    """Return the number of data blocks that the volume `after` maps otherwise than its origin `before`, or alone."""
    line = ("thin_delta", "-m", "--thin1", str(before), "--thin2", str(after), str(metadata))
    output = process.run(*line, timeout=_SECONDS).stdout
    return sum(int(length) for length in _ADDED.findall(output))


def _thin_ls(metadata: Path, fields: str) -> Iterator[list[int]]:
    output = process.run("thin_ls", "-m", "--no-headers", "-o", fields, str(metadata), timeout=_SECONDS).stdout
    for line in output.splitlines():
        if numbers := re.findall(r"\d+", line):
            yield [int(number) for number in numbers]
