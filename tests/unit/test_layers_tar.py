"""What the tar reader makes of sound, damaged, cut, compressed and absurd archives."""

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dmthin.errors import DmthinError, InvalidValue, NotFound, NotPermitted
from dmthin.layers.entry import NO_OWNER, Entry, EntryType, shown
from dmthin.layers.header import Malformed, number, parse_time
from dmthin.layers.source import open_source
from dmthin.layers.stream import ByteStream, RawInput
from dmthin.layers.tar import MAX_EXTENSION
from dmthin.layers.unpack import unpack
from tests.support.examples import examples
from tests.support.tars import everything, member, tar

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "bzip2": bz2.compress,
}


def entries(data: bytes, *, layer: bool = False) -> list[tuple[Entry, bytes]]:
    with open_source(io.BytesIO(data), layer=layer) as source:
        return [(entry, everything(reader)) for entry, reader in source]


def with_checksum(block: bytes | bytearray) -> bytes:
    """A header whose checksum is right again."""
    block = bytes(block[:148]) + b" " * 8 + bytes(block[156:512])
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def refused(data: bytes) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(InvalidValue) as caught:
        entries(data)
    text = str(caught.value)
    assert text.isprintable()
    return text


SMALL = tar(
    member("directory", type=tarfile.DIRTYPE, mode=0o755),
    member("directory/file", b"x" * 700),
    member("directory/long" + "g" * 120, b"y" * 512, pax_headers={"SCHILY.xattr.user.note": "value"}),
    member("link", type=tarfile.SYMTYPE, linkname="directory/file"),
    member("last", b"z"),
)


def test_all_fields_of_a_header() -> None:
    info, data = member("a/é\udcff\n", b"12345", mode=0o106755, uid=70_000, gid=3_000_000_000, mtime=1_700_000_000)
    info.pax_headers = {"mtime": "1700000000.1234567899", "SCHILY.xattr.security.capability": "\0\udcff=\nx"}
    link, _ = member("b", type=tarfile.LNKTYPE, linkname="a/é\udcff\n")
    node, _ = member("c", type=tarfile.BLKTYPE, devmajor=8, devminor=300)
    [(entry, content), (hard, _), (device, _)] = entries(tar((info, data), (link, b""), (node, b"")))
    assert entry == Entry(
        "a/é".encode() + b"\xff\n",
        EntryType.FILE,
        0o6755,
        70_000,
        3_000_000_000,
        1_700_000_000_123_456_789,
        5,
        xattrs={"security.capability": b"\0\xff=\nx"},
    )
    assert content == b"12345"
    assert (hard.type, hard.link, hard.xattrs) == (EntryType.HARDLINK, entry.path, {})
    assert device.device == os.makedev(8, 300)


def test_names_of_xattrs_as_gnu_tar_writes_them() -> None:
    pax = {"SCHILY.xattr.user.a%3Db%25c": "1", "SCHILY.xattr.user.empty": ""}
    [(entry, _)] = entries(tar(member("a", pax_headers=pax)))
    assert dict(entry.xattrs) == {"user.a=b%c": b"1", "user.empty": b""}


def test_names_of_xattrs_in_a_layer_are_as_docker_takes_them() -> None:
    pax = {"SCHILY.xattr.user.a%3Db%25c%": "1", "SCHILY.xattr.user.empty": ""}
    [(entry, _)] = entries(tar(member("a", pax_headers=pax)), layer=True)
    assert dict(entry.xattrs) == {"user.a%3Db%25c%": b"1", "user.empty": b""}


def test_gnu_names_of_any_length_and_negative_times() -> None:
    name, target = "n" * 300, "t" * 5000
    [(entry, _)] = entries(
        tar(member(name, type=tarfile.SYMTYPE, linkname=target, mtime=-5), format=tarfile.GNU_FORMAT)
    )
    assert (entry.path, entry.link, entry.mtime_ns) == (name.encode(), target.encode(), -5_000_000_000)


def test_a_gnu_header_keeps_times_where_ustar_keeps_names() -> None:
    block = bytearray(tar(member("name"), format=tarfile.GNU_FORMAT)[:512])
    block[345:357] = b"14624163300\0"  # atime, as tar --incremental writes it
    [(entry, _)] = entries(with_checksum(block) + bytes(1024))
    assert entry.path == b"name"


def test_a_v7_directory_and_a_contiguous_file() -> None:
    block = bytearray(tar(member("dir/"), format=tarfile.USTAR_FORMAT)[:512])
    block[156:157], block[257:265] = b"\0", bytes(8)
    [(entry, _)] = entries(with_checksum(block))
    assert entry.type is EntryType.DIRECTORY
    [(entry, data)] = entries(tar(member("file", b"data", type=tarfile.CONTTYPE)))
    assert (entry.type, data) == (EntryType.FILE, b"data")


def test_a_signed_checksum() -> None:
    block = bytearray(tar(member("é" * 20), format=tarfile.GNU_FORMAT)[:512])
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + b" " * 8 + block[156:])
    block[148:156] = b"%06o\0 " % signed
    assert entries(bytes(block))[0][0].path == ("é" * 20).encode()


def test_global_headers_are_passed_over() -> None:
    archive = tarfile.TarInfo.create_pax_global_header({"path": "elsewhere", "size": "7"}) + tar(member("a", b"b"))
    [(entry, data)] = entries(archive)
    assert (entry.path, data) == (b"a", b"b")


def test_types_without_data_have_none_whatever_their_size() -> None:
    found = entries(tar(member("d", type=tarfile.DIRTYPE, size=5000), member("f", b"data")))
    assert [entry.path for entry, _ in found] == [b"d/", b"f"]


def test_data_left_unread_is_skipped() -> None:
    with open_source(io.BytesIO(SMALL)) as source:
        assert [entry.path[:14] for entry, _ in source] == [
            b"directory/",
            b"directory/file",
            b"directory/long",
            b"link",
            b"last",
        ]


def test_an_empty_archive_is_no_empty_file() -> None:
    assert entries(bytes(10240)) == []
    assert entries(bytes(512)) == []
    assert "it is empty" in refused(b"")
    assert "it is empty" in refused(gzip.compress(b""))


@pytest.mark.parametrize("compress", [bytes, *COMPRESSIONS.values()])
def test_no_bytes_at_all_are_a_layer_without_entries(compress: Callable[[bytes], bytes]) -> None:
    assert entries(compress(b""), layer=True) == []


def test_a_layer_may_end_after_an_extended_header() -> None:
    """As the volumes of a GNU tar archive do that is cut there: an image of Docker's is whole by its digest."""
    whole = tar(member("a", b"data"), member("b", pax_headers={"comment": "x"}))
    cut = whole[:2048]  # two blocks for a, and two for the extended header of b
    assert cut[1024 + 156 : 1024 + 157] == b"x"
    assert [entry.path for entry, _ in entries(cut, layer=True)] == [b"a"]
    assert [entry.path for entry, _ in entries(cut + bytes(1024), layer=True)] == [b"a"]
    for data in (cut, cut + bytes(1024)):
        assert "it ends after an extended header" in refused(data)


@pytest.mark.parametrize(
    "data",
    [b"junk", b"junk" * 10_000, bytes(100), b"\0" * 512 + b"junk" * 1000, b"\x1f\x8bjunk", b"BZh91AY&SYjunk"],
)
def test_what_is_no_archive(data: bytes) -> None:
    refused(data)


def test_a_damaged_header_is_not_the_end() -> None:
    """The standard library's reader takes it for the end, and gives a short tree."""
    middle = bytearray(SMALL)
    middle[512 + 512 + 1024 + 3] ^= 1
    assert "corrupt at byte 2048" in refused(bytes(middle))
    assert "lone block of zeros" in refused(SMALL[:2048] + bytes(512) + SMALL[2560:])


def change(offset: int, value: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(tar(member("victim", b"data"), format=tarfile.GNU_FORMAT)[:512])
    block[156:157] = kind
    block[offset : offset + len(value)] = value
    return with_checksum(block) + b"data" + bytes(508 + 1024)


def base256(value: int, length: int) -> bytes:
    return bytes([0xFF if value < 0 else 0x80]) + (value % (1 << 8 * length - 8)).to_bytes(length - 1, "big")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (change(124, base256(-512, 12)), "victim has the invalid size -512"),
        (change(124, base256(1 << 80, 12)), "victim has the invalid size"),
        (change(124, base256(1 << 60, 12)), "is truncated: it ends within victim"),
        (change(124, b"0o17       \0"), "not octal"),
        (change(124, b"-0000000017\0"), "not octal"),
        (change(156, b"M"), "begins within victim, in the middle of a multi-volume archive"),
        (change(124, base256(MAX_EXTENSION + 1, 12), b"x"), f"limit of {MAX_EXTENSION}"),
        (change(124, base256(1 << 40, 12), b"L"), "more than the limit"),
        (change(124, base256(-1, 12), b"K"), "more than the limit"),
        (change(124, base256(MAX_EXTENSION, 12), b"x"), "it ends within an extended header"),
        (change(156, b"x"), "PAX record has no length"),
        (change(156, b"S"), "inconsistent"),
    ],
)
def test_absurd_headers(data: bytes, words: str) -> None:
    assert words in refused(data)


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        # As chown(2) and mknod(2) take what Go's archive/tar reads: `docker load` accepts all of these.
        (change(108, base256(-2, 8)), "uid", 4294967294),
        (change(108, base256(-1, 8)), "uid", NO_OWNER),
        (change(116, base256(0xFFFFFFFF, 8)), "gid", NO_OWNER),
        (change(116, base256((1 << 32) + 5, 8)), "gid", 5),
        (change(108, b"     0\0 "), "uid", 0),
        (change(108, b"0000017\0"), "uid", 15),
        (change(108, b"17\0xyz\0 "), "uid", 15),
        (change(108, b"\0\0  17 9"), "uid", 15),
        (change(100, base256(-1, 8)), "mode", 0o7777),
        (change(329, base256(5000, 8), b"3"), "device", os.makedev(5000 % 4096, 0)),
        (change(337, base256(-1, 8), b"4"), "device", os.makedev(0, 0xFFFFF)),
        (change(124, base256(-512, 12), b"5"), "size", 0),
        (change(136, base256(-5, 12)), "mtime_ns", -5_000_000_000),
        (change(136, base256(1 << 86, 12)), "mtime_ns", (1 << 62) * 1_000_000_000),
        (tar(member("victim", pax_headers={"uid": "-2", "gid": "+7"})), "uid", 4294967294),
        (change(156, b"Z"), "type", EntryType.FILE),
        (change(156, b"7"), "type", EntryType.FILE),
    ],
)
def test_numbers_that_no_inode_has_make_no_archive_unusable(data: bytes, field: str, value: object) -> None:
    [(entry, _)] = entries(data[:512] + bytes(1024) if field in ("device", "size") else data)
    assert getattr(entry, field) == value


def test_a_label_is_no_entry_and_a_directory_of_an_incremental_archive_is_one() -> None:
    label = change(156, b"V")[:1024]
    dumpdir = change(156, b"D")[:1024]
    found = entries(label + dumpdir + SMALL)
    assert [(entry.path, entry.type, data) for entry, data in found[:2]] == [
        (b"victim", EntryType.DIRECTORY, b"data"),
        (b"directory/", EntryType.DIRECTORY, b""),
    ]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lzma.compress(SMALL, format=lzma.FORMAT_ALONE), "is compressed with lzma"),
        (b"\x1f\x9d\x90" + SMALL, "is compressed with compress"),
        (b"\x04\x22\x4d\x18" + SMALL, "is compressed with lz4"),
        (b"PK\x03\x04" + SMALL, "is a zip archive"),
        (b"!<arch>\n" + SMALL, "is an ar archive, such as a Debian package"),
        (b"no tar" * 200, "is not a tar archive: the checksum of a header is not a number"),
        (b"", "is not a tar archive: it is empty"),
        (b"short", "is not a tar archive: it is shorter than a header"),
    ],
)
def test_what_is_no_tar_is_named(data: bytes, words: str) -> None:
    assert words in refused(data)


def test_an_error_in_the_first_header_of_a_tar_does_not_say_that_it_is_none() -> None:
    assert "corrupt at byte 0 of the tar: victim has the invalid size" in refused(change(124, base256(-512, 12)))


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=\n5",
        b"6 a=b\n9 path",
        b"99 path=x\n",
        b"4 a=\n\n",
        b"0 a=b\n",
        b"6 =ab\n",
        b"6 abc\n",
        b"99999999999999999999999 a=b\n",
        b"17 size=12345678x\n",
        b"11 uid=0x2\n",
        b"30 size=9999999999999999999999\n"[:31],
        b"16 mtime=soon...\n"[:17],
        b"21 GNU.sparse.map=1,2\n"[:22],
        b"25 SCHILY.xattr.\0bad=val\n"[:26],
        b"22 GNU.sparse.major=7\n",
        b"22 GNU.sparse.size=70\n" + b"27 GNU.sparse.offset=123456\n",
    ],
)
def test_absurd_pax_records(records: bytes) -> None:
    header = bytearray(tar(member("pax", records), format=tarfile.USTAR_FORMAT)[:512])
    header[156:157] = b"x"
    refused(with_checksum(header) + records + bytes(-len(records) % 512) + tar(member("a", b"data")))


@pytest.mark.parametrize(
    "pairs",
    ["0,10", "5,5,0,5", "0,4,2,2", "0,4,4,1", "90,5", "0,4,1", "0,4,x,1", "-1,4", "9223372036854775807,4"],
)
def test_sparse_maps_that_lie(pairs: str) -> None:
    pax = {"GNU.sparse.size": "64", "GNU.sparse.map": pairs}
    refused(tar(member("a", b"data", pax_headers=pax)))


def test_a_sparse_map_without_end() -> None:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "64"}
    assert "unterminated sparse map" in refused(tar(member("a", b"9\n" + b"1\n" * 100, pax_headers=pax)))
    assert "unterminated sparse map" in refused(tar(member("a", b"7" * 4096, pax_headers=pax)))
    assert "extents" in refused(tar(member("a", b"99999999\n" + b"1\n" * 1000, pax_headers=pax)))
    block = bytearray(tar(member("a"), format=tarfile.GNU_FORMAT)[:512])
    block[156:157], block[482] = b"S", 1
    more = bytearray((b"%011o\0%011o\0" % (0, 1)) * 21 + b"\x01" + bytes(7))
    assert "extents" in refused(with_checksum(block) + bytes(more) * 13_000)


def test_a_chain_of_extended_headers_does_not_recurse() -> None:
    link = tar(member("n" * 101), format=tarfile.GNU_FORMAT)[:1024]
    assert len(entries(link * 5000 + tar(member("end")))) == 1


def outcome(data: bytes) -> list[bytes] | None:
    """Paths of the entries; None: refused."""
    try:
        return [entry.path for entry, _ in entries(data)]
    except InvalidValue:
        return None


# Headers begin here; the third entry's is two blocks further, behind its PAX header.
STARTS = [0, 512, 2048, 4096, 4608]


@pytest.mark.parametrize("form", [None, *COMPRESSIONS])
def test_a_tar_cut_at_every_block(form: str | None) -> None:
    whole = outcome(SMALL)
    assert whole is not None and len(whole) == 5
    for cut in range(0, len(SMALL), 512):
        piece = SMALL[:cut]
        found = outcome(piece if form is None else COMPRESSIONS[form](piece))
        if cut in STARTS[1:]:
            assert found == whole[: STARTS.index(cut)], cut
        elif cut >= 5632:
            assert found == whole, cut
        else:
            assert found is None, cut
        if cut:  # the file of 700 bytes is complete although its padding is not
            assert outcome(piece[:-100]) == (whole[:2] if cut == 2048 else whole if cut > 5120 else None), cut


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_compressed_data_cut_anywhere(form: str) -> None:
    packed = COMPRESSIONS[form](SMALL)
    assert len(entries(packed)) == 5
    for cut in range(len(packed)):
        assert outcome(packed[:cut]) is None, cut


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_compressed_data_changed_anywhere(form: str) -> None:
    packed = COMPRESSIONS[form](SMALL)
    whole = outcome(SMALL)
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 0x20
        assert outcome(bytes(changed)) in (None, whole), at


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_streams_of_several_parts_and_what_may_follow(form: str) -> None:
    pack = COMPRESSIONS[form]
    parts = pack(SMALL[:1000]) + pack(b"") + pack(SMALL[1000:])
    assert len(entries(parts)) == 5
    assert len(entries(parts + bytes(1000))) == 5
    assert "trailing data after" in refused(parts + b"more than enough junk")
    assert "trailing data after" in refused(parts + bytes(100) + b"x")


def test_zstd_with_skippable_frames() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    assert len(entries(skipped + COMPRESSIONS["zstd"](SMALL) + skipped)) == 5


class Trickle(io.RawIOBase):
    """A pipe that gives one byte at a time, and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        self._at += 1
        return self._data[self._at - 1 : self._at]

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("form", [None, *COMPRESSIONS])
def test_a_slow_pipe(form: str | None) -> None:
    data = SMALL if form is None else COMPRESSIONS[form](SMALL)
    with open_source(Trickle(data)) as source:  # type: ignore[arg-type]
        assert source.total is None
        assert len(list(source)) == 5
        assert source.position == len(data)


def test_a_bomb_takes_little_memory() -> None:
    def zeros() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    compressors = (zstandard.ZstdCompressor().compressobj(), lzma.LZMACompressor(), bz2.BZ2Compressor(1))
    for compressor in compressors:
        packed = b"".join(compressor.compress(piece) for piece in zeros()) + compressor.flush()
        stream = ByteStream(RawInput(io.BytesIO(packed), "bomb"))
        largest = total = 0
        while piece := stream.some(1 << 40):
            largest, total = max(largest, len(piece)), total + len(piece)
        assert total == 64 << 20
        assert largest <= 32 << 20


def test_an_xz_stream_that_wants_too_much_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    assert "corrupt xz data" in refused(lzma.compress(SMALL, filters=filters))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", str(tmp_path / "missing\n")):
        with pytest.raises(NotFound, match=r"missing"), open_source(path):
            pass
    for path in (tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(DmthinError), open_source(path):
            pass


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    misleading = tmp_path / "archive.tar.gz"
    misleading.write_bytes(COMPRESSIONS["xz"](SMALL))
    with open_source(misleading) as source:
        assert source.total == misleading.stat().st_size
        assert len(list(source)) == 5


def test_standard_input(tmp_path: Path) -> None:
    program = (
        "import sys; from dmthin.layers.unpack import unpack;"
        f"print(unpack('-', {os.fspath(tmp_path)!r}, keep_owners=False))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=COMPRESSIONS["gzip"](SMALL), capture_output=True)
    assert done.stdout == b"Unpacked(entries=5, bytes=1213)\n"
    assert (tmp_path / "link").read_bytes() == b"x" * 700


def test_numbers_and_times() -> None:
    assert [
        number(b"0000644\0"),
        number(b" 644 \0"),
        number(b"\0" * 8),
        number(b"\x80" + b"\0" * 6 + b"\x05"),
    ] == [
        0o644,
        0o644,
        0,
        5,
    ]
    assert number(b"\xff" * 12) == -1
    assert parse_time(b"-1.5") == -1_500_000_000
    assert parse_time(b"1.") == 1_000_000_000
    with pytest.raises(Malformed):
        parse_time(b"1e9")


@given(st.binary())
def test_names_in_messages_are_one_printable_line(name: bytes) -> None:
    assert shown(name).isprintable()
    assert 0 < len(shown(name * 100)) < 300


RICH = tar(
    member("./", type=tarfile.DIRTYPE, mode=0o755),
    member("dir", type=tarfile.DIRTYPE, mode=0o755),
    member("dir/file", b"x" * 600, pax_headers={"mtime": "1.5", "SCHILY.xattr.user.a": "b"}),
    member("dir/sparse", b"data", pax_headers={"GNU.sparse.size": "9000", "GNU.sparse.map": "4096,4"}),
    member("link", type=tarfile.SYMTYPE, linkname="dir"),
    member("hard", type=tarfile.LNKTYPE, linkname="dir/file"),
    member("fifo", type=tarfile.FIFOTYPE),
    member("link/through", b"y"),
    member("n" * 150, b"z"),
) + tar(member("g" * 150, b"z"), member("end", b"."), format=tarfile.GNU_FORMAT)


@examples(usual=75, deep=3000)
@given(st.randoms(use_true_random=False), st.integers(1, 6), st.booleans())
def test_fuzzed_headers_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, dice: random.Random, changes: int, mend: bool
) -> None:
    """Any byte may change, with checksums made right again in half of the trials; the neighbour must not."""
    data = bytearray(RICH)
    for _ in range(changes):
        at = dice.randrange(len(data))
        data[at] = dice.choice([0, 0x2E, 0x2F, 0x30, 0x31, 0x80, 0xFF, data[at] ^ (1 << dice.randrange(8))])
    if mend:
        for at in range(0, len(data) - 1024, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + 512] = with_checksum(data[at : at + 512])
    scratch = tmp_path_factory.mktemp("fuzz")
    (scratch / "neighbour").mkdir()
    (scratch / "neighbour" / "file").write_bytes(b"untouched")
    (scratch / "root").mkdir()
    try:
        unpack(io.BytesIO(bytes(data)), scratch / "root", keep_owners=False)
    except InvalidValue as error:
        assert str(error).isprintable()
    except NotPermitted:
        assert os.geteuid() != 0
    assert sorted(os.listdir(scratch)) == ["neighbour", "root"]
    assert os.listdir(scratch / "neighbour") == ["file"]
    assert (scratch / "neighbour" / "file").read_bytes() == b"untouched"
    subprocess.run(["chmod", "-R", "u+rwX", scratch], check=True)
