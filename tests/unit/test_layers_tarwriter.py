"""What the tar writer writes is read alike by our reader, by Python's and by GNU tar."""

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.errors import InvalidValue, KernelError
from dmthin.layers.entry import Entry, EntryType
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.tar import MAX_ID, TarReader
from dmthin.layers.tarwriter import FdWriter, TarWriter
from tests.support.examples import examples
from tests.support.tars import everything

FILE, HARDLINK, SYMLINK = EntryType.FILE, EntryType.HARDLINK, EntryType.SYMLINK
LARGE = 8 << 30


def packed(*entries: tuple[Entry, bytes] | Entry) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for item in entries:
        entry, data = item if isinstance(item, tuple) else (item, b"")
        writer.add(entry, io.BytesIO(data))
    writer.end()
    return out.getvalue()


def read(archive: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(ByteStream(RawInput(io.BytesIO(archive), "test")), "test", layer=True)
    return [(entry, everything(data)) for entry, data in reader]


names = st.binary(min_size=1, max_size=300).filter(
    lambda path: b"\0" not in path and not path.startswith(b"/") and not path.endswith(b"/")
)
times = st.one_of(st.integers(0, 2**33).map(lambda n: n * 10**9), st.integers(-(10**19), 10**20))
ids = st.one_of(st.integers(0, 70000), st.integers(0, MAX_ID))
xattrs = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1, max_size=20).map("user.".__add__),
    st.binary(max_size=300),
    max_size=3,
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(EntryType))
    data = draw(st.binary(max_size=2000)) if kind is FILE else b""
    link = draw(names) if kind in (HARDLINK, SYMLINK) else b""
    node = kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
    device = os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1))) if node else 0
    path = draw(names) + (b"/" if kind is EntryType.DIRECTORY else b"")
    mode = draw(st.integers(0, 0o7777))
    values: Mapping[str, bytes] = draw(xattrs)
    return (
        Entry(path, kind, mode, draw(ids), draw(ids), draw(times), len(data), link, device, values),
        data,
    )


def readable(entry: Entry) -> bool:
    """Python's and GNU's readers clean names; ours does not judge them."""
    parts = (entry.path.rstrip(b"/") + b"/" + entry.link).split(b"/")
    return b"" not in parts[:-1] and b"." not in parts and b".." not in parts


@examples(usual=60, deep=3000)
@given(st.lists(entries(), max_size=4))
def test_our_reader_gives_back_what_was_written(items: list[tuple[Entry, bytes]]) -> None:
    assert read(packed(*items)) == items


@examples(usual=40, deep=2000)
@given(st.lists(entries().filter(lambda item: readable(item[0])), max_size=4))
def test_python_reads_it(items: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(*items)), encoding="utf-8", errors="surrogateescape") as archive:
        members = archive.getmembers()
        for info, (entry, data) in zip(members, items, strict=True):
            assert os.fsencode(info.name) == entry.path.rstrip(b"/")
            assert os.fsencode(info.linkname) == entry.link.rstrip(b"/")
            assert (info.uid, info.gid, info.mode) == (entry.uid, entry.gid, entry.mode)
            assert info.mtime == pytest.approx(entry.mtime_ns / 10**9)
            assert (info.uname, info.gname) == ("", "")
            assert os.makedev(info.devmajor, info.devminor) == entry.device
            if entry.type is FILE:
                file = archive.extractfile(info)
                assert file is not None
                assert file.read() == data


@examples(usual=15, deep=500)
@given(st.lists(entries().filter(lambda item: readable(item[0])), max_size=5))
def test_gnu_tar_lists_it(items: list[tuple[Entry, bytes]]) -> None:
    told = subprocess.run(
        ["tar", "--quoting-style=literal", "--null", "-t"],
        input=packed(*items),
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert told.stderr == b""
    expected = b"".join(entry.path + b"\n" for entry, _ in items)
    assert told.stdout == expected


def test_gnu_tar_unpacks_times_links_and_attributes(tmp_path: Path) -> None:
    long = b"n" * 200 + b"\xff"
    archive = packed(
        Entry(b"/d", EntryType.DIRECTORY, 0o751, os.geteuid(), os.getegid(), 1_500_000_000_123_456_789),
        (Entry(b"d/" + long, FILE, 0o640, os.geteuid(), os.getegid(), 999_999_999_500_000_000, 4,
               xattrs={"user.a%b": b"\0=\n\xff"}), b"data"),
        Entry(b"d/h", HARDLINK, 0, link=b"/d/" + long),
        Entry(b"s", SYMLINK, 0o777, os.geteuid(), os.getegid(), 1, link=b"/" + long),
    )  # fmt: skip
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", tmp_path], input=archive, check=True)
    file = os.path.join(os.fsencode(tmp_path), b"d", long)
    assert Path(os.fsdecode(file)).read_bytes() == b"data"
    assert os.stat(file).st_mtime_ns == 999_999_999_500_000_000
    assert os.stat(tmp_path / "d").st_mtime_ns == 1_500_000_000_123_456_789
    assert os.getxattr(file, "user.a%b") == b"\0=\n\xff"
    assert os.stat(tmp_path / "d/h").st_ino == os.stat(file).st_ino
    assert os.readlink(os.fsencode(tmp_path) + b"/s") == b"/" + long


def test_names_of_attributes_are_written_as_docker_reads_them() -> None:
    archive = packed(Entry(b"a", FILE, 0o644, xattrs={"user.100%25": b"1", "user.a=b": b"2"}))
    assert b" SCHILY.xattr.user.100%25=1\n" in archive
    assert b" SCHILY.xattr.user.a%3Db=2\n" in archive  # which Go refuses to write
    [(entry, _)] = read(archive)
    assert dict(entry.xattrs) == {"user.100%25": b"1", "user.a%3Db": b"2"}


@pytest.mark.parametrize(
    ("path", "needs"),
    [
        (b"a" * 100, False),
        (b"a" * 101, True),
        (b"p" * 155 + b"/" + b"n" * 100, False),
        (b"p" * 156 + b"/" + b"n" * 99, True),
        (b"p" * 155 + b"/" + b"n" * 101, True),
        (b"p" * 50 + b"/" + b"q" * 104 + b"/" + b"n" * 100, False),
        (b"caf\xc3\xa9", True),
        (b"\xff", True),
    ],
)
def test_a_pax_header_only_where_it_is_needed(path: bytes, needs: bool) -> None:
    archive = packed(Entry(path, FILE, 0o644, mtime_ns=10**9))
    assert len(archive) == 512 * (5 if needs else 3)
    assert (archive[156:157] == b"x") is needs
    assert read(archive)[0][0].path == path


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (1, b"0.000000001"),
        (1_500_000_000, b"1.5"),
        (-1, b"-0.000000001"),
        (-1_500_000_000, b"-1.5"),
        (-(10**9), b"-1"),
        (2**33 * 10**9, b"8589934592"),
    ],
)
def test_times_that_need_a_record(mtime_ns: int, text: bytes) -> None:
    archive = packed(Entry(b"f", FILE, 0o644, mtime_ns=mtime_ns))
    assert b" mtime=" + text + b"\n" in archive
    assert read(archive)[0][0].mtime_ns == mtime_ns


@pytest.mark.parametrize("length", [*range(80, 120), *range(980, 1010)])
def test_a_record_counts_its_own_digits(length: int) -> None:
    entry = Entry(b"f", FILE, 0o644, xattrs={"user.x": b"v" * length})
    assert read(packed(entry))[0][0] == entry


def test_holes_are_written_as_zeros() -> None:
    entry = Entry(b"f", FILE, 0o644, size=600_000, segments=((5, 3), (300_000, 4)))
    (found, data) = read(packed((entry, b"abcdefg")))[0]
    assert (found.size, found.segments) == (600_000, None)
    assert data == bytes(5) + b"abc" + bytes(299_992) + b"defg" + bytes(299_996)


class _Endless:
    def read(self, limit: int, /) -> bytes:
        return bytes(limit)


class _Counter:
    """Keeps the beginning of what it is given."""

    def __init__(self) -> None:
        self.begin = b""
        self.length = 0

    def write(self, data: bytes, /) -> None:
        self.length += len(data)
        if len(self.begin) < 4096:
            self.begin += data[:4096]


def test_a_size_beyond_the_header_s_field() -> None:
    counter = _Counter()
    TarWriter(counter).add(Entry(b"f", FILE, 0o644, size=LARGE, segments=()))
    assert b"19 size=8589934592\n" in counter.begin
    assert counter.length == 3 * 512 + LARGE
    counter = _Counter()
    TarWriter(counter).add(Entry(b"f", FILE, 0o644, size=LARGE - 1, segments=()))
    assert counter.begin[124:136] == b"77777777777\0"


def test_deletions() -> None:
    out = io.BytesIO()
    writer = TarWriter(out)
    writer.remove(b"d/x", 7 * 10**9)
    writer.remove(b"y", 7 * 10**9)
    writer.end()
    assert [entry for entry, _ in read(out.getvalue())] == [
        Entry(b"d/.wh.x", FILE, 0, mtime_ns=7 * 10**9),
        Entry(b".wh.y", FILE, 0, mtime_ns=7 * 10**9),
    ]


def test_more_attributes_than_readers_take() -> None:
    entry = Entry(b"d/f", FILE, 0o644, xattrs={f"user.{n}": bytes(65536) for n in range(17)})
    with pytest.raises(InvalidValue, match="d/f has more attributes than a tar can hold"):
        packed(entry)


def test_data_that_ends_too_early_is_no_member() -> None:
    with pytest.raises(InvalidValue, match="the data of f is shorter than its size"):
        packed((Entry(b"f", FILE, 0o644, size=5), b"four"))


def test_an_output_gathers_small_pieces_and_writes_nothing_unasked() -> None:
    read_end, write_end = os.pipe()
    output = FdWriter(write_end)
    output.write(b"a")
    output.write(b"b")
    os.set_blocking(read_end, False)
    with pytest.raises(BlockingIOError):
        os.read(read_end, 10)
    output.flush()
    assert (os.read(read_end, 10), output.written) == (b"ab", 2)
    os.close(read_end)
    output.write(b"c")
    with pytest.raises(KernelError, match="cannot write the output: Broken pipe"):
        output.flush()
    os.close(write_end)
