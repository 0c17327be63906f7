"""Unpacking an archive, or copying a directory, below a root directory, with reports of progress."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import BinaryIO

from dmthin.layers.content import CHUNK
from dmthin.layers.entry import Reader
from dmthin.layers.idmap import Owners
from dmthin.layers.source import Source, open_source
from dmthin.layers.unpacker import Unpacker
from dmthin.units import MIB

_PROGRESS_ENTRIES = 256
_PROGRESS_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an unpacking: entries and bytes of file data written, bytes read of the source, its size."""

    entries: int
    bytes: int
    read: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The result of an unpacking: the number of entries, and the sum of all file sizes in bytes, holes included."""

    entries: int
    bytes: int


def unpack(
    source: str | os.PathLike[str] | BinaryIO | Source,
    root: int | str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    keep_owners: bool = True,
    max_entries: int | None = None,
    layer: bool = False,
    owners: Owners | None = None,
) -> Unpacked:
    """Unpack an archive or copy a directory below `root`. `source` is a Source, or an argument of `open_source`.

    `progress` is called after every 256 entries, every 4 MiB of a large file, and at the end.
    Raise what `open_source`, the source's iterator, Unpacker and `Unpacker.apply` raise.
    """
    with (
        nullcontext(source) if isinstance(source, Source) else open_source(source, layer=layer) as entries,
        Unpacker(
            root,
            source=entries.name,
            keep_owners=keep_owners,
            max_entries=max_entries,
            layer=layer,
            owners=owners,
        ) as unpacker,
    ):

        def report(more: int = 0) -> None:
            if progress is not None:
                progress(Progress(unpacker.entries, unpacker.bytes + more, entries.position, entries.total))

        for entry, data in entries:
            unpacker.apply(entry, _ProgressReader(data, report) if entry.size > CHUNK else data)
            if unpacker.entries % _PROGRESS_ENTRIES == 0:
                report()
        unpacker.close()
        report()
        return Unpacked(unpacker.entries, unpacker.bytes)


class _ProgressReader:
    """A reader that reports the bytes read of a large file."""

    def __init__(self, inner: Reader, report: Callable[[int], None]) -> None:
        self._inner = inner
        self._report = report
        self._read = self._reported = 0

    def read(self, limit: int, /) -> bytes:
        piece = self._inner.read(limit)
        self._read += len(piece)
        if self._read - self._reported >= _PROGRESS_BYTES:
            self._reported = self._read
            self._report(self._read)
        return piece
