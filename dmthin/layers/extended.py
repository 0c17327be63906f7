"""Extended headers of a tar, which describe the next entry: GNU long names, PAX records, sparse maps."""

from dataclasses import dataclass, field

from dmthin.layers.header import Malformed, TarHeader, parse_decimal, parse_integer, parse_pax, parse_time

Segments = list[tuple[int, int]]
"""(offset, length) in bytes of the extents that hold data."""

_XATTR = b"SCHILY.xattr."


@dataclass(slots=True)
class Extended:
    """Collects the extended headers of one entry; `complete` then applies them to the entry's own header.

    Values of `xattrs` are exact bytes, and may be empty. Names in a `layer` are as they stand in the records, as Docker
    and containerd take them; others are decoded as GNU tar encodes them. Records that have no field here are ignored,
    among them atime, and user and group names.
    """

    layer: bool
    name: bytes = b""
    link: bytes = b""
    records: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    _offsets: list[bytes] = field(default_factory=list)
    _lengths: list[bytes] = field(default_factory=list)

    def add(self, kind: bytes, data: bytes) -> None:
        """Add the content of a header of type `kind`: L and K are GNU's long name and link target, x and X are PAX.

        Raise Malformed.
        """
        if kind == b"L":
            self.name = data.partition(b"\0")[0]
        elif kind == b"K":
            self.link = data.partition(b"\0")[0]
        else:
            for key, value in parse_pax(data):
                self._record(key, value)

    def _record(self, key: bytes, value: bytes) -> None:
        """Add one PAX record. Raise Malformed for an extended attribute without a valid name."""
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if not self.layer:
                # GNU tar writes `=` in a name as %3D, hence % as %25 (xheader.c, xattr_encode_keyword).
                name = name.replace(b"%3D", b"=").replace(b"%25", b"%")
            if not name or b"\0" in name:
                raise Malformed("an extended attribute has no proper name")
            self.xattrs[name.decode("utf-8", "surrogateescape")] = value
        elif key == b"GNU.sparse.offset":  # version 0.0 repeats this key and the next one
            self._offsets.append(value)
        elif key == b"GNU.sparse.numbytes":
            self._lengths.append(value)
        elif value:
            self.records[key] = value
        else:  # an empty value deletes the record (POSIX.1-2001, pax)
            self.records.pop(key, None)

    def complete(self, header: TarHeader) -> TarHeader:
        """Return the header with the fields that the extended headers override. Raise Malformed."""
        get = self.records.get
        name = get(b"GNU.sparse.name") or get(b"path") or self.name or header.name
        link = get(b"linkpath") or self.link or header.link
        return TarHeader(
            name,
            header.mode,
            self._number(b"uid", header.uid),
            self._number(b"gid", header.gid),
            self._number(b"size", header.size),
            parse_time(self.records[b"mtime"]) if b"mtime" in self.records else header.mtime_ns,
            header.type,
            link,
            self._number(b"SCHILY.devmajor", header.major),
            self._number(b"SCHILY.devminor", header.minor),
        )

    def _number(self, key: bytes, otherwise: int) -> int:
        text = self.records.get(key)
        return otherwise if text is None else parse_integer(text, key.decode())

    @property
    def sparse_version(self) -> str:
        """The version of GNU's PAX sparse format: 0.0, 0.1 or 1.0; empty if the file is not sparse.

        Raise Malformed for any other version.
        """
        records = self.records
        if b"GNU.sparse.major" in records or b"GNU.sparse.minor" in records:
            version = records.get(b"GNU.sparse.major", b"?") + b"." + records.get(b"GNU.sparse.minor", b"?")
            if version not in (b"0.0", b"0.1", b"1.0"):
                raise Malformed(f"unknown version {version[:20]!r} of the sparse format")
            return version.decode()
        if b"GNU.sparse.map" in records:
            return "0.1"
        return "0.0" if b"GNU.sparse.size" in records or self._offsets else ""

    def sparse_size(self) -> int:
        """Return the size in bytes of the sparse file, holes included. Raise Malformed."""
        for key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
            if key in self.records:
                return parse_decimal(self.records[key], "size")
        raise Malformed("a sparse file has no size")

    def sparse_map(self) -> Segments:
        """Return the extents of a sparse file of version 0.0 or 0.1; version 1.0 stores them before the data.

        Raise Malformed.
        """
        if b"GNU.sparse.map" in self.records:
            numbers = self.records[b"GNU.sparse.map"].split(b",")
            offsets, lengths = numbers[::2], numbers[1::2]
        else:
            offsets, lengths = self._offsets, self._lengths
        if len(offsets) != len(lengths):
            raise Malformed("a sparse map has an offset without a length")
        pairs = zip(offsets, lengths, strict=True)
        return [(parse_decimal(offset, "offset"), parse_decimal(length, "length")) for offset, length in pairs]
