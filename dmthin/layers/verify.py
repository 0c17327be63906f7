"""Comparison of an applied layer with the tar that it was made from, by the record that dockerd keeps: tar-split.

The record (github.com/vbatts/tar-split, package storage) has the tar without the contents of its files, as lines of
JSON: `type` 1 is the content of a file of `size` bytes with a `name`, or `name_raw` in base64 if that is not UTF-8;
`type` 2 has other bytes of the tar as `payload`, in base64.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from dmthin.errors import InvalidValue
from dmthin.layers.confine import ConfinedTree, split
from dmthin.layers.entry import shown
from dmthin.layers.nodes import open_file
from dmthin.layers.stream import CHUNK, ByteStream
from dmthin.layers.whiteout import PREFIX, CreatedNames, WhiteoutKind, whiteout_kind
from dmthin.units import MIB

_LONGEST_LINE = 4 * MIB
"""Bytes of a line: the headers before one file, of which an extended one has at most 1 MiB."""

_NAMES = 100
"""Names of each kind in a report."""

_FILE, _SEGMENT = 1, 2
_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(slots=True)
class Findings:
    """What differs between a layer and its tar. Paths are relative to the root, of each kind at most 100.

    `digest` is that of the tar which the layer's files make (`sha256:...`), empty if some are missing. `missing` are
    files that are gone or have another size, `stale` names of lower layers that the tar deletes.
    """

    digest: str = ""
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def parse_findings(text: bytes) -> Findings:
    """Return the findings in a worker's output, their fields as JSON. Raise InvalidValue for anything else."""
    try:
        found = json.loads(text)
        return Findings(str(found["digest"]), [*map(str, found["missing"])], [*map(str, found["stale"])])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidValue(f"invalid findings of a worker: {error}") from None


class LayerVerifier:
    """Verifies one layer's tree. The whole tree must be readable, and must not change meanwhile."""

    def __init__(self, root_fd: int, record: ByteStream, name: str) -> None:
        self._tree = ConfinedTree(root_fd)
        self._record = record
        self._name = name
        self._created = CreatedNames()
        self._whiteouts: list[tuple[WhiteoutKind, bytes, bytes]] = []
        self._findings = Findings()

    def verify(self) -> Findings:
        """Return what differs. Raise InvalidValue for an invalid record, OSError."""
        digest = hashlib.sha256()
        try:
            for entry in self._entries():
                if entry.get("type") == _SEGMENT:
                    digest.update(_decoded(entry.get("payload") or ""))
                elif entry.get("type") == _FILE:
                    self._file(entry, digest)
                else:
                    raise ValueError("an unknown type of entry")
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidValue(f"{self._name}: its record of the tar is invalid: {error}") from None
        if not self._findings.missing:
            self._findings.digest = f"sha256:{digest.hexdigest()}"
        for kind, parent, name in self._whiteouts:
            with suppress(*_GONE):
                self._whiteout(kind, parent, name)
        self._tree.close()
        return self._findings

    def _entries(self) -> "Iterator[dict[str, object]]":
        """Yield the lines of the record. Raise ValueError for one that is too long or no JSON."""
        rest = b""
        while piece := self._record.some(CHUNK):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise ValueError("a line is too long")
            yield from (json.loads(line) for line in lines if line)
        if rest:
            yield json.loads(rest)

    def _file(self, entry: dict[str, object], digest: "hashlib._Hash") -> None:
        """Add a file's content to the digest, and remember its name. Raise ValueError, TypeError, OSError."""
        raw, name, size = entry.get("name_raw"), entry.get("name", ""), entry.get("size", 0)
        if not isinstance(name, str) or not isinstance(size, int):
            raise TypeError("a file without a name or size")
        path = _decoded(raw) if raw else name.encode("utf-8", "surrogateescape")
        parent, base = split(path)
        kind = whiteout_kind(parent, base, is_file=True)
        if kind is WhiteoutKind.NONE:
            try:
                self._record_name(parent, base)
                if base and size:
                    self._content(parent, base, size, digest)
            except _GONE:
                _add(self._findings.missing, path)
        elif kind in (WhiteoutKind.DELETE, WhiteoutKind.OPAQUE):
            self._whiteouts.append((kind, parent, base))

    def _record_name(self, parent: bytes, base: bytes) -> None:
        """Record a name, and the directories above it, as created by this layer. Raise OSError if it is missing."""
        while base:
            self._tree.trim()
            directory = self._tree.directory(parent)
            os.lstat(base, dir_fd=directory.fd)
            if self._created.contains(directory.identity[1], base):
                return
            self._created.add(directory.identity[1], base)
            parent, base = split(parent)

    def _content(self, parent: bytes, base: bytes, size: int, digest: "hashlib._Hash") -> None:
        """Add a file of `size` bytes to the digest. Raise FileNotFoundError for any other size, OSError."""
        fd = open_file(self._tree.directory(parent).fd, base)
        try:
            if os.fstat(fd).st_size != size:
                raise FileNotFoundError
            while piece := os.read(fd, CHUNK):
                digest.update(piece)
        finally:
            os.close(fd)

    def _whiteout(self, kind: WhiteoutKind, parent: bytes, base: bytes) -> None:
        """Find what a whiteout should have removed. Raise OSError."""
        self._tree.trim()
        directory = self._tree.directory(parent)
        if kind is WhiteoutKind.DELETE:
            name = base[len(PREFIX) :]
            os.lstat(name, dir_fd=directory.fd)
            if not self._created.contains(directory.identity[1], name):
                _add(self._findings.stale, _joined(parent, name))
            return
        for folder, inner, others, fd in os.fwalk(b".", dir_fd=directory.fd):
            number = os.fstat(fd).st_ino
            for name in [*inner, *others]:
                if not self._created.contains(number, name):
                    _add(self._findings.stale, _joined(parent, folder, name))
            inner[:] = [name for name in inner if self._created.contains(number, name)]


def _joined(*parts: bytes) -> bytes:
    """Return a path below the root; parts may be empty or `.`."""
    return os.path.normpath(b"/".join((b".", *parts)))


def _decoded(text: object) -> bytes:
    """Return the bytes of a base64 text. Raise ValueError."""
    if not isinstance(text, str):
        raise ValueError("no text where base64 is due")
    return base64.b64decode(text, validate=True)


def _add(names: list[str], path: bytes) -> None:
    if len(names) < _NAMES and (name := shown(path)) not in names:
        names.append(name)
