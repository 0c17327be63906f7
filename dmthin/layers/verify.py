"""Comparison of a layer's tree with the tar that it was made from: what is missing, changed, or should be gone."""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from dmthin.errors import InvalidValue
from dmthin.layers.confine import ConfinedTree, OpenDirectory, split
from dmthin.layers.entry import Entry, EntryType, Reader, shown
from dmthin.layers.nodes import open_file
from dmthin.layers.stream import CHUNK
from dmthin.layers.whiteout import PREFIX, CreatedNames, WhiteoutKind, whiteout_kind

_NAMES = 100
"""Names of each kind in a report."""

_GONE = (FileNotFoundError, NotADirectoryError)
_FORMATS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


@dataclass(slots=True)
class Findings:
    """What differs between a layer and its tar. Paths are relative to the root, of each kind at most 100.

    `missing` are files that are gone or have another size, `changed` those with another content or type, `stale` names
    of lower layers that the tar deletes. `digest` is that of the tar which the layer's files make (`sha256:...`), empty
    if some are missing, or if it was not computed.
    """

    digest: str = ""
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def parse_findings(text: bytes) -> Findings:
    """Return the findings in a worker's output, their fields as JSON. Raise InvalidValue for anything else."""
    try:
        found = json.loads(text)
        names = ([*map(str, found[kind])] for kind in ("missing", "changed", "stale"))
        return Findings(str(found["digest"]), *names)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidValue(f"invalid findings of a worker: {error}") from None


class LayerVerifier:
    """Collects what differs while a layer's tar is read. The tree must be readable, and must not change meanwhile.

    A tar may have several entries of one path: the last one decides.
    """

    def __init__(self, root_fd: int) -> None:
        self._tree = ConfinedTree(root_fd)
        self._created = CreatedNames()
        self._whiteouts: list[tuple[WhiteoutKind, bytes, bytes]] = []
        self._missing: dict[bytes, None] = {}
        self._changed: dict[bytes, None] = {}

    def find(self, path: bytes, *, is_file: bool) -> tuple[OpenDirectory, bytes] | None:
        """Return the directory and the name of a path of the tar.

        None is for the root, for a whiteout, which `finish` examines, and for what is missing. Raise OSError.
        """
        parent, base = split(path)
        kind = whiteout_kind(parent, base, is_file=is_file)
        if kind is WhiteoutKind.NONE:
            try:
                self._record(parent, base)
                return (self._tree.directory(parent), base) if base else None
            except _GONE:
                self.missing(path)
        elif kind in (WhiteoutKind.DELETE, WhiteoutKind.OPAQUE):
            self._whiteouts.append((kind, parent, base))
            if kind is WhiteoutKind.DELETE:  # of what this tar has itself, too
                self.supersede(_joined(parent, base[len(PREFIX) :]), tree=True)
        return None

    def missing(self, path: bytes) -> None:
        """Note that what the tar has at `path` is gone, or has another size."""
        self._missing.setdefault(_joined(path))

    def changed(self, path: bytes) -> None:
        """Note that what the tar has at `path` has another content or type."""
        self._changed.setdefault(_joined(path))

    def supersede(self, path: bytes, *, tree: bool) -> None:
        """Forget what was noted at a path of which the tar has another entry, and below it if that ended a `tree`."""
        path = _joined(path)
        for names in (self._missing, self._changed):
            for name in [name for name in names if name == path or (tree and name.startswith(path + b"/"))]:
                del names[name]

    def finish(self) -> Findings:
        """Return what differs, once the whole tar was read. Raise OSError."""
        stale: dict[bytes, None] = {}
        for kind, parent, name in self._whiteouts:
            with suppress(*_GONE):
                for path in islice(self._stale(kind, parent, name), _NAMES):
                    stale.setdefault(path)
        self._tree.close()
        kinds = (self._missing, self._changed, stale)
        return Findings("", *([*map(shown, islice(names, _NAMES))] for names in kinds))

    def _record(self, parent: bytes, base: bytes) -> None:
        """Record a name, and the directories above it, as created by this layer. Raise OSError if it is missing."""
        while base:
            self._tree.trim()
            directory = self._tree.directory(parent)
            os.lstat(base, dir_fd=directory.fd)
            if self._created.contains(directory.identity[1], base):
                return
            self._created.add(directory.identity[1], base)
            parent, base = split(parent)

    def _stale(self, kind: WhiteoutKind, parent: bytes, base: bytes) -> Iterator[bytes]:
        """Yield what a whiteout should have removed. Raise OSError."""
        self._tree.trim()
        directory = self._tree.directory(parent)
        if kind is WhiteoutKind.DELETE:
            name = base[len(PREFIX) :]
            os.lstat(name, dir_fd=directory.fd)
            if not self._created.contains(directory.identity[1], name):
                yield _joined(parent, name)
            return
        folders = [parent]
        while folders:
            path = folders.pop()
            self._tree.trim()
            directory = self._tree.directory(path)
            for name in _names_in(directory):
                if not self._created.contains(directory.identity[1], name):
                    yield _joined(path, name)
                elif stat.S_ISDIR(os.lstat(name, dir_fd=directory.fd).st_mode):
                    folders.append(_joined(path, name))


def _names_in(directory: OpenDirectory) -> list[bytes]:
    """Return the names in a directory. Raise OSError."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as entries:
            return [os.fsencode(entry.name) for entry in entries]
    finally:
        os.close(fd)


def open_content(directory: OpenDirectory, name: bytes, size: int) -> int:
    """Return a descriptor of a regular file of `size` bytes. Raise FileNotFoundError for any other, OSError."""
    fd = open_file(directory.fd, name)
    if os.fstat(fd).st_size != size:
        os.close(fd)
        raise FileNotFoundError
    return fd


def verify_tar(root_fd: int, entries: Iterable[tuple[Entry, Reader]]) -> Findings:
    """Return what differs between a tree and the entries of its tar: types, link targets, content, and whiteouts.

    Holes of sparse files are not read. Raise what `entries` raises, OSError.
    """
    verifier = LayerVerifier(root_fd)
    for entry, data in entries:
        verifier.supersede(entry.path, tree=entry.type is not EntryType.DIRECTORY)
        found = verifier.find(entry.path, is_file=entry.type is EntryType.FILE)
        if found is None or entry.type is EntryType.HARDLINK:
            continue
        try:
            if not _is_same(entry, *found, data):
                verifier.changed(entry.path)
        except _GONE:
            verifier.missing(entry.path)
    return verifier.finish()


def _is_same(entry: Entry, directory: OpenDirectory, name: bytes, data: Reader) -> bool:
    """Return whether a path is what its entry says. Raise FileNotFoundError for another size, OSError."""
    status = os.lstat(name, dir_fd=directory.fd)
    if stat.S_IFMT(status.st_mode) != _FORMATS[entry.type]:
        return False
    if entry.type is EntryType.SYMLINK:
        return os.readlink(name, dir_fd=directory.fd) == entry.link
    if entry.type in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE):
        return status.st_rdev == entry.device
    if entry.type is not EntryType.FILE:
        return True
    segments = ((0, entry.size),) if entry.segments is None else entry.segments
    fd = open_content(directory, name, entry.size)
    try:
        return all(_has(fd, data, at, length) for at, length in segments)
    finally:
        os.close(fd)


def _has(fd: int, data: Reader, at: int, length: int) -> bool:
    """Return whether a file has the next `length` bytes of `data` at the offset `at`. Raise InvalidValue, OSError."""
    end = at + length
    while at < end:
        expected = data.read(min(end - at, CHUNK))
        if not expected or os.pread(fd, len(expected), at) != expected:
            return False
        at += len(expected)
    return True


def _joined(*parts: bytes) -> bytes:
    """Return a path below the root; parts may be empty, absolute, `.` or `..`."""
    return os.path.normpath(b"/" + b"/".join(parts)).lstrip(b"/")
