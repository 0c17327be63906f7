"""A tar writer whose archives dockerd, GNU tar and Python read alike: ustar, with PAX records where ustar is too small.

POSIX.1-2001, pax, "ustar Interchange Format" and "pax Extended Header". Holes are written as zeros, because dockerd
reassembles archives from file contents and does not support sparse formats.
"""

import os
from typing import Protocol

from dmthin.errors import InvalidValue, KernelError
from dmthin.layers.entry import MODE_BITS, NO_DATA, Entry, EntryType, Reader, shown
from dmthin.layers.header import BLOCK, LAYOUT, NANOSECONDS
from dmthin.layers.tar import MAX_EXTENSION
from dmthin.layers.whiteout import PREFIX
from dmthin.units import KIB

_CHUNK = 256 * KIB
_ZEROS = bytes(_CHUNK)
_TYPES = {
    EntryType.FILE: b"0",
    EntryType.HARDLINK: b"1",
    EntryType.SYMLINK: b"2",
    EntryType.CHAR_DEVICE: b"3",
    EntryType.BLOCK_DEVICE: b"4",
    EntryType.DIRECTORY: b"5",
    EntryType.FIFO: b"6",
}
_MAGIC = b"ustar\x0000"
_NAME, _PREFIX = 100, 155
_MAX_ID = 0o7777777
_MAX_LONG = 0o77777777777
"""The largest size (8 GiB) and time (in the year 2242) in eleven octal digits."""

Records = list[tuple[bytes, bytes]]
"""(key, value) of PAX records."""


class Writable(Protocol):
    """What an output must provide: `write` accepts all bytes that it is passed."""

    def write(self, data: bytes, /) -> object: ...


class FdWriter:
    """Buffers writes to a descriptor, which it does not close. Call `flush` at the end.

    `written` is the number of bytes accepted so far. Both methods raise KernelError if writing fails.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pieces: list[bytes] = []
        self._held = 0
        self.written = 0

    def write(self, data: bytes, /) -> None:
        """Add bytes to the buffer, and flush it if it is full."""
        self._pieces.append(data)
        self._held += len(data)
        self.written += len(data)
        if self._held >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the buffer to the descriptor."""
        left = memoryview(b"".join(self._pieces))
        self._pieces, self._held = [], 0
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise KernelError(f"cannot write the output: {error.strerror}", errno=error.errno or 0) from error


class TarWriter:
    """Writes entries one by one. The archive is complete once `end` was called.

    Leading slashes of paths are removed; paths of directories end in a slash. Times have nanoseconds if the entry's
    time has; other times and the names of owners are not written. Paths, link targets and values of extended attributes
    are written as raw bytes. `add` raises InvalidValue for an entry with more attributes than readers accept, or with
    less data than its size; and what `output` and the readers raise.
    """

    def __init__(self, output: Writable) -> None:
        self._write = output.write

    def add(self, entry: Entry, data: Reader = NO_DATA) -> None:
        """Write one entry, with the data that `data` returns."""
        size = entry.size if entry.type is EntryType.FILE else 0
        self._write(_headers(entry, size))
        if size:
            self._data(entry, data, size)

    def remove(self, path: bytes, mtime_ns: int) -> None:
        """Write a whiteout of `path` (OCI image specification, layer.md, "Whiteouts")."""
        parent, slash, name = path.lstrip(b"/").rpartition(b"/")
        self.add(Entry(parent + slash + PREFIX + name, EntryType.FILE, 0, mtime_ns=mtime_ns))

    def end(self) -> None:
        """Write the two blocks that end an archive."""
        self._write(bytes(2 * BLOCK))

    def _data(self, entry: Entry, data: Reader, size: int) -> None:
        """Write the data of a file, its holes as zeros, and the padding. Raise InvalidValue if it is too short."""
        at = 0
        for offset, length in ((0, size),) if entry.segments is None else entry.segments:
            self._zeros(offset - at)
            at = offset + length
            while length:
                piece = data.read(min(length, _CHUNK))
                if not piece:
                    raise InvalidValue(f"the data of {shown(entry.path)} is shorter than its size")
                self._write(piece)
                length -= len(piece)
        self._zeros(size - at + -size % BLOCK)

    def _zeros(self, count: int) -> None:
        while count > 0:
            self._write(_ZEROS[:count])
            count -= _CHUNK


def _headers(entry: Entry, size: int) -> bytes:
    """Return the header of an entry, preceded by a PAX header if it needs one. Raise InvalidValue."""
    path = entry.path.lstrip(b"/")
    if entry.type is EntryType.DIRECTORY:
        path = (path or b".").rstrip(b"/") + b"/"
    link = entry.link.lstrip(b"/") if entry.type is EntryType.HARDLINK else entry.link
    records: Records = []
    prefix, name = _split(path)
    if not name:
        records.append((b"path", path))
        name = _ascii(path)
    if len(link) > _NAME or not link.isascii():
        records.append((b"linkpath", link))
        link = _ascii(link)
    seconds, rest = divmod(entry.mtime_ns, NANOSECONDS)
    if rest or not 0 <= seconds <= _MAX_LONG:
        records.append((b"mtime", _time(entry.mtime_ns)))
        seconds = min(max(seconds, 0), _MAX_LONG)
    uid = _or_record(records, b"uid", entry.uid, _MAX_ID)
    gid = _or_record(records, b"gid", entry.gid, _MAX_ID)
    length = _or_record(records, b"size", size, _MAX_LONG)
    for key, value in sorted(entry.xattrs.items()):
        # No record can have the character that ends its key: Go's archive/tar refuses to write such a name. All others
        # stay as they are, because engines decode nothing.
        safe = key.encode("utf-8", "surrogateescape").replace(b"=", b"%3D")
        records.append((b"SCHILY.xattr." + safe, value))
    device = os.major(entry.device), os.minor(entry.device)
    mode = entry.mode & MODE_BITS
    header = _block(name, mode, (uid, gid), length, seconds, _TYPES[entry.type], link, device, prefix)
    if not records:
        return header
    extension = b"".join(_record(key, value) for key, value in records)
    if len(extension) > MAX_EXTENSION:
        raise InvalidValue(f"{shown(entry.path)} has more attributes than a tar can hold: {len(extension)} bytes")
    label = b"PaxHeaders.0/" + _ascii(path.rstrip(b"/").rpartition(b"/")[2])
    first = _block(label[:_NAME], 0o644, (0, 0), len(extension), 0, b"x")
    return first + extension + bytes(-len(extension) % BLOCK) + header


def _block(
    name: bytes,
    mode: int,
    owner: tuple[int, int],
    size: int,
    seconds: int,
    kind: bytes,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
) -> bytes:
    numbers = [b"%07o\0" % value for value in (mode, *owner)]
    nodes = [b"%07o\0" % value for value in device]
    block = LAYOUT.pack(
        name, *numbers, b"%011o\0" % size, b"%011o\0" % seconds, b" " * 8, kind, link, _MAGIC, b"", b"", *nodes, prefix
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Return the prefix and name fields of a ustar header for a path; an empty name if they cannot hold it."""
    if not path.isascii() or len(path) > _PREFIX + 1 + _NAME:
        return b"", b""
    if len(path) <= _NAME:
        return b"", path
    at = path.rfind(b"/", 0, min(_PREFIX + 1, len(path) - 1))
    prefix, name = path[: max(at, 0)], path[at + 1 :]
    return (prefix, name) if prefix and len(name) <= _NAME else (b"", b"")


def _ascii(path: bytes) -> bytes:
    """Return an ASCII approximation of a path, for readers without support for PAX."""
    return path[:_NAME].decode("ascii", "replace").replace("\ufffd", "_").encode()


def _or_record(records: Records, key: bytes, value: int, limit: int) -> int:
    """Return the value for a header field, or 0 if it exceeds `limit`; then add a PAX record for it."""
    if value <= limit:
        return value
    records.append((key, b"%d" % value))
    return 0


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    # The length includes its own digits, which may carry it to one digit more.
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _time(mtime_ns: int) -> bytes:
    sign = b"-" if mtime_ns < 0 else b""
    seconds, rest = divmod(abs(mtime_ns), NANOSECONDS)
    return sign + (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".")
