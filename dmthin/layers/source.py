"""Sources of an image, a tar or a directory, opened as a stream of entries."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from dmthin.errors import DmthinError, InvalidValue, NotFound
from dmthin.layers.entry import Entry, EntryType, Reader, shown
from dmthin.layers.stream import ByteStream, RawInput, Readable
from dmthin.layers.tar import TarReader
from dmthin.layers.walk import TreeWalker, require_proc
from dmthin.os_errors import SOURCE, explain

STDIN = "-"


class Source(ABC):
    """Entries with their data. Can be iterated over once; each reader is valid until the next entry is requested.

    `name` identifies it in messages. `total` is the final value of `position`, None if unknown.
    """

    total: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def position(self) -> int:
        """Bytes read so far: of the archive before decompression, or of the files in a directory."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Entry, Reader]]: ...


class _TarSource(Source):
    def __init__(self, stream: Readable, name: str, *, layer: bool) -> None:
        super().__init__(name)
        self._layer = layer
        self._raw = RawInput(stream, name)
        self.total = self._raw.total

    @property
    def position(self) -> int:
        return self._raw.position

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        return iter(TarReader(ByteStream(self._raw), self.name, layer=self._layer))


class _TreeSource(Source):
    def __init__(self, fd: int, name: str) -> None:
        super().__init__(name)
        self._walker = TreeWalker(fd, name)

    @property
    def position(self) -> int:
        return self._walker.position

    def __iter__(self) -> Iterator[tuple[Entry, Reader]]:
        return iter(self._walker)


@contextmanager
def open_source(source: str | os.PathLike[str] | BinaryIO, *, layer: bool = False) -> Iterator[Source]:
    """Open a directory or a tar: a path, `-` for standard input, or an open stream.

    With `layer`, the tar is a layer of an image, see TarReader.

    A tar may be compressed with gzip, xz, zstd or bzip2, which is detected by its first bytes, not its name. Of an
    open stream only `read(size)` is used, and it is not closed.
    Raise NotFound, NotPermitted, Unavailable (no /proc), InvalidValue (a terminal as input, an invalid path) or
    KernelError. Iteration raises InvalidValue for an invalid archive or a directory that changes meanwhile,
    NotPermitted, and KernelError if reading fails.
    """
    if isinstance(source, str) and source == STDIN:
        if os.isatty(0):
            raise InvalidValue("standard input is a terminal, not an archive", hint="redirect a tar to it")
        with open(0, "rb", buffering=0, closefd=False) as stream:
            yield _TarSource(stream, "standard input", layer=layer)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        name = shown(os.fsencode(path))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _open_error(name, error) from error
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                require_proc()
                yield _TreeSource(fd, name)
            else:
                with open(fd, "rb", buffering=0, closefd=False) as stream:
                    yield _TarSource(stream, name, layer=layer)
        finally:
            os.close(fd)
    else:
        yield _TarSource(source, "the archive", layer=layer)


@dataclass(frozen=True, slots=True)
class Measured:
    """The size of a source: `bytes` is the sum of its file sizes without holes."""

    name: str
    bytes: int


def measure_source(source: str | os.PathLike[str]) -> Measured:
    """Read a directory or a tar to its end, and return its size. Raise what `open_source` and its iteration raise."""
    with open_source(source) as entries:
        # Of several entries with one name, the last stays.
        files = {entry.path: entry.stored for entry, _ in entries if entry.type is EntryType.FILE}
        return Measured(entries.name, sum(files.values()))


def _open_error(name: str, error: OSError | ValueError) -> DmthinError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{name} does not exist", hint="pass a tar file, a directory, or - for standard input")
    if isinstance(error, ValueError):
        return InvalidValue(f"invalid path {name}: {error}")
    return explain(error.errno or 0, f"cannot open {name}", SOURCE)
