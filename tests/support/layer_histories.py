"""Generated histories of layers: what the tars of an image's layers may hold, from the lowest layer up.

They are for comparing unpackers, so they hold what unpackers agree on, or should: a name that was a directory in a
layer stays one within it, a whiteout comes before what the same layer puts in its place, and a hard link refers to an
entry of its layer. With `listed`, each directory is listed before what is in it; otherwise directories may be missing
or come through links of lower layers, and there are no opaque marks. With `overlay`, there is nothing that dockerd
refuses (a path that is listed twice) or that overlay drivers do otherwise: an opaque mark at the root, attributes of
directories, a whiteout together with what takes its place, a hard link to a symbolic link. docs/docker.md lists what
engines do differently.
"""

import os
import struct
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

BLOCK = 512
_LAYOUT = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
USTAR, GNU, PAX = "ustar", "gnu", "pax"
_MAGIC = {USTAR: b"ustar\x0000", PAX: b"ustar\x0000", GNU: b"ustar  \0"}
OPAQUE = b".wh..wh..opq"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
LATEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar, as it will be written. Numbers may be raw bytes of the field."""

    name: bytes
    kind: bytes = b"0"
    data: bytes = b""
    link: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    form: str = PAX
    records: tuple[tuple[bytes, bytes], ...] = field(default=())

    def encode(self) -> bytes:
        """Return the blocks of the entry, with the extended headers that its form needs."""
        records = list(self.records)
        before = b""
        for value, kind, key in ((self.name, b"L", b"path"), (self.link, b"K", b"linkpath")):
            if len(value) > 100:
                if self.form == GNU:
                    before += _header(self, b"././@LongLink", kind, len(value) + 1) + _padded(value + b"\0")
                else:
                    records.append((key, value))
        if records:
            body = b"".join(_record(key, value) for key, value in records)
            before += _header(self, b"PaxHeaders/entry", b"x", len(body)) + _padded(body)
        return before + _header(self, self.name[:100], self.kind, len(self.data)) + _padded(self.data)


def tar_of_members(members: tuple[Member, ...]) -> bytes:
    """Return a tar, without the padding to a full record."""
    return b"".join(member.encode() for member in members) + bytes(2 * BLOCK)


def _number(value: int, width: int) -> bytes:
    """Return a field: octal where it fits, else base-256 (GNU tar's manual, "Basic Tar Format")."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = (value & ((1 << 8 * width) - 1)).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def _header(member: Member, name: bytes, kind: bytes, size: int) -> bytes:
    block = bytearray(
        _LAYOUT.pack(
            name,
            _number(member.mode, 8),
            _number(member.uid, 8),
            _number(member.gid, 8),
            _number(size, 12),
            _number(member.mtime, 12),
            b" " * 8,
            kind,
            member.link[:100],
            _MAGIC[member.form],
            b"",
            b"",
            _number(member.device[0], 8),
            _number(member.device[1], 8),
            b"",
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record; its length counts its own digits."""
    length = len(key) + len(value) + 3
    while len(b"%d %b=%b\n" % (length, key, value)) != length:
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


# --- strategies -----------------------------------------------------------------------------------------------------

_PLAIN = st.sampled_from([b"a", b"b", b"c", b"d"])
_ODD_NAMES = st.one_of(
    st.sampled_from(
        [b".hidden", b"..x", b"\xff\xfe", b"n" * 200, b"sp ace", b"new\nline", "é".encode(), b".whx", b"\\x"]
    ),
    st.binary(min_size=1, max_size=20).map(lambda raw: b"_" + raw.replace(b"/", b"|").replace(b"\0", b"0")),
)
_KINDS = st.sampled_from(["directory", "file", "file", "symlink", "hardlink", "node", "whiteout", "opaque"])
_PARTS = st.lists(_PLAIN, min_size=1, max_size=3)
_IDS = st.sampled_from([0, 0, 1000, 65534, 2_097_151, 2_097_152, 3_000_000, 0x7FFFFFFF, 0xFFFFFFFE])
_MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o7777, 0o100644])
_TIMES = st.sampled_from([0, 1, 1_600_000_000, 0o77777777777, 1 << 33, LATEST // 10**9])
_FINE_TIMES = st.sampled_from([b"1600000000.123456789", b"1.5", b"0.000000001", b"9223372036.5", b"4102444800"])
BEYOND = (b"-1", b"-0.5", b"-2147483648", b"9223372037", b"253402300800")
"""Times that Docker and containerd take for 0."""

_DATA = st.sampled_from(
    [b"", b"x", b"y" * 511, b"y" * 512, b"z" * 5000, bytes(100_000), bytes(70_000) + b"end", b"a" + bytes(200_000)]
)
_LINKS = st.sampled_from([b"a", b"b", b"c/d", b"../a", b"/b", b"../../../c", b"nowhere", b".", b"x" * 150, b"/a/b"])
_XATTRS = st.sampled_from(
    [
        (b"SCHILY.xattr.user.a", b"value"),
        (b"SCHILY.xattr.user.b", b"\0\1\xff"),
        (b"SCHILY.xattr.trusted.t", b"trusted"),
        (b"SCHILY.xattr.security.capability", CAPABILITY),
    ]
)
_IGNORED = st.sampled_from(
    [
        (b"comment", b"nothing"),
        (b"LIBARCHIVE.xattr.user.z", b"eA"),
        (b"SCHILY.acl.access", b"user::rw-,group::r--,other::r--"),
        (b"uname", b"somebody"),
        (b"LIBARCHIVE.creationtime", b"1"),
    ]
)
"""Records that Docker and containerd pass over."""


@dataclass
class _Layer:
    """The layer under construction: its entries, the names that are directories in it, and those that are not."""

    listed: bool
    overlay: bool
    members: list[Member] = field(default_factory=list)
    paths: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    directories: set[bytes] = field(default_factory=set)
    others: list[bytes] = field(default_factory=list)
    symlinks: set[bytes] = field(default_factory=set)

    def add(self, member: Member, choice: int) -> None:
        """Add an entry, after the directories above it, unless it contradicts another one.

        A hard link refers to the entry that `choice` selects.
        """
        parts = os.path.normpath(b"/" + member.name).strip(b"/").split(b"/")
        path, base = b"/".join(parts), parts[-1]
        above = [b"/".join(parts[:count]) for count in range(1, len(parts))]
        if any(folder in self.others for folder in above):
            return
        is_whiteout = base.startswith(b".wh.")
        hidden = b"/".join([*parts[:-1], base[4:]])
        if is_whiteout:
            if hidden in self.directories or hidden in self.others or (base == OPAQUE and not self.listed):
                return
        elif member.kind == b"5":
            if path in self.others:
                return
        elif path in self.directories:
            return
        if self.overlay and (self.deleted.intersection([*above, path]) or path in self.paths or path == OPAQUE):
            return
        if self.overlay and member.kind == b"5":
            records = tuple(record for record in member.records if not record[0].startswith(b"SCHILY.xattr."))
            member = replace(member, records=records)
        if self.listed:
            missing = [folder for folder in above if folder not in self.directories]
            self.members += [Member(folder, b"5", mode=0o755, mtime=5) for folder in missing]
            self.paths.update(missing)
        self.directories.update(above)
        if member.kind == b"5" and not is_whiteout:
            self.directories.add(path)
        elif member.kind == b"1" and not is_whiteout:
            targets = [
                other for other in self.others if other != path and not (self.overlay and other in self.symlinks)
            ]
            if not targets:
                return
            member = replace(member, link=targets[choice % len(targets)])
        if not is_whiteout and member.kind != b"5" and path not in self.others:
            self.others.append(path)
            if member.kind == b"2":
                self.symlinks.add(path)
        self.paths.add(path)
        if is_whiteout:
            self.deleted.add(hidden)
        self.members.append(member)


@st.composite
def _members(draw: st.DrawFn) -> Member:
    """One entry of a layer."""
    parts = draw(_PARTS)
    if draw(st.integers(0, 9)) == 0:
        parts[-1] = draw(_ODD_NAMES)
    kind = draw(_KINDS)
    if kind in ("whiteout", "opaque"):
        base = OPAQUE if kind == "opaque" else b".wh." + draw(_PLAIN)
        return Member(b"/".join([*parts[:-1], base]), draw(st.sampled_from([b"0", b"0", b"1", b"5", b"3"])))
    records = [(b"mtime", draw(_FINE_TIMES))] if draw(st.booleans()) else []
    if kind != "symlink" and draw(st.integers(0, 4)) == 0:
        records = [(b"mtime", draw(st.sampled_from(BEYOND)))]
    if kind in ("directory", "file") and draw(st.integers(0, 2)) == 0:
        records.append(draw(_XATTRS))
    if draw(st.integers(0, 5)) == 0:
        records.append(draw(_IGNORED))
    member = Member(
        draw(st.sampled_from([b"%b", b"%b", b"%b", b"./%b", b"/%b", b"../%b", b"x/../%b"])) % b"/".join(parts),
        mode=draw(_MODES),
        uid=draw(_IDS),
        gid=draw(_IDS),
        mtime=draw(_TIMES),
        form=PAX if records else draw(st.sampled_from([USTAR, GNU, PAX])),
        records=tuple(records),
    )
    match kind:
        case "directory":
            return replace(member, kind=b"5", name=member.name + draw(st.sampled_from([b"", b"/"])))
        case "file":
            return replace(member, kind=draw(st.sampled_from([b"0", b"\0"])), data=draw(_DATA))
        case "symlink":
            return replace(member, kind=b"2", link=draw(_LINKS))
        case "hardlink":
            return replace(member, kind=b"1")
    device = draw(st.sampled_from([(1, 3), (10, 255), (0, 1), (4095, 0), (1, 1 << 18)]))
    return replace(member, kind=draw(st.sampled_from([b"3", b"4", b"6"])), device=device)


@st.composite
def layers(draw: st.DrawFn, listed: bool, overlay: bool) -> tuple[Member, ...]:
    """The entries of one layer."""
    layer = _Layer(listed, overlay)
    for member, choice in draw(st.lists(st.tuples(_members(), st.integers(0, 50)), min_size=1, max_size=12)):
        layer.add(member, choice)
    return tuple(layer.members)


def histories(*, listed: bool, overlay: bool = False) -> st.SearchStrategy[list[tuple[Member, ...]]]:
    """Return a strategy for one to three layers."""
    return st.lists(layers(listed, overlay), min_size=1, max_size=3)
