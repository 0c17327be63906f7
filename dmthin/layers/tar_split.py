"""Comparison of a layer with the record that dockerd keeps of its tar, tar-split: the tar without files' contents.

The record (github.com/vbatts/tar-split, package storage) is of lines of JSON: `type` 1 is the content of a file of
`size` bytes with a `name`, or `name_raw` in base64 if that is not UTF-8; `type` 2 has other bytes of the tar as
`payload`, in base64.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator

from dmthin.errors import InvalidValue
from dmthin.layers.stream import CHUNK, ByteStream
from dmthin.layers.verify import Findings, LayerVerifier, open_content
from dmthin.units import MIB

_LONGEST_LINE = 4 * MIB
"""Bytes of a line: the headers before one file, of which an extended one has at most 1 MiB."""

_FILE, _SEGMENT = 1, 2


def verify_record(root_fd: int, record: ByteStream, name: str) -> Findings:
    """Return what differs between a tree and the record of its tar, with the digest of the tar that the tree makes.

    Raise InvalidValue for an invalid record, which begins with `name`; OSError.
    """
    verifier, digest = LayerVerifier(root_fd), hashlib.sha256()
    complete = True
    try:
        for entry in _entries(record):
            if entry.get("type") == _SEGMENT:
                digest.update(_decoded(entry.get("payload") or ""))
            elif entry.get("type") == _FILE:
                complete &= _file(verifier, entry, digest)
            else:
                raise ValueError("an unknown type of entry")
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidValue(f"{name}: its record of the tar is invalid: {error}") from None
    findings = verifier.finish()
    if complete and not findings.missing:
        findings.digest = f"sha256:{digest.hexdigest()}"
    return findings


def _entries(record: ByteStream) -> "Iterator[dict[str, object]]":
    """Yield the lines of a record. Raise ValueError for one that is too long or no JSON."""
    rest = b""
    while piece := record.some(CHUNK):
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError("a line is too long")
        yield from (json.loads(line) for line in lines if line)
    if rest:
        yield json.loads(rest)


def _file(verifier: LayerVerifier, entry: dict[str, object], digest: "hashlib._Hash") -> bool:
    """Add a file's content to the digest. Return False if the file is missing. Raise ValueError, TypeError, OSError."""
    raw, name, size = entry.get("name_raw"), entry.get("name", ""), entry.get("size", 0)
    if not isinstance(name, str) or not isinstance(size, int):
        raise TypeError("a file without a name or size")
    path = _decoded(raw) if raw else name.encode("utf-8", "surrogateescape")
    found = verifier.find(path, is_file=True)
    if not size:
        return True
    if found is None:
        return False
    try:
        fd = open_content(*found, size)
    except (FileNotFoundError, NotADirectoryError):
        verifier.missing(path)
        return False
    try:
        while piece := os.read(fd, CHUNK):
            digest.update(piece)
    finally:
        os.close(fd)
    return True


def _decoded(text: object) -> bytes:
    """Return the bytes of a base64 text. Raise ValueError."""
    if not isinstance(text, str):
        raise ValueError("no text where base64 is due")
    return base64.b64decode(text, validate=True)
