"""The records of the device-mapper ioctl ABI, packed and unpacked."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.errors import InvalidValue
from dmthin.kernel import dmabi
from dmthin.kernel.cstruct import text
from dmthin.kernel.devicemapper import DeviceName, Target, Version, check_name, check_uuid
from dmthin.kernel.dmabi import HEADER_SIZE, Flag, Header, Request

NUMBER = st.integers(0, (1 << 32) - 1)
SECTOR_COUNT = st.integers(0, (1 << 64) - 1)
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=200)
TARGETS = st.lists(
    st.builds(Target, SECTOR_COUNT, SECTOR_COUNT, st.sampled_from(["thin", "thin-pool", "linear"]), WORDS), max_size=8
)


def test_request_codes_are_those_of_the_kernels_header() -> None:
    assert hex(Request.VERSION.code) == "0xc138fd00"
    assert hex(Request.TARGET_MSG.code) == "0xc138fd0e"
    assert hex(Request.DEV_ARM_POLL.code) == "0xc138fd10"


@given(
    name=st.binary(max_size=127).filter(lambda text: b"\0" not in text),
    uuid=st.binary(max_size=128).filter(lambda text: b"\0" not in text),
    flags=NUMBER,
    event=NUMBER,
    dev=SECTOR_COUNT,
    count=NUMBER,
    open_count=st.integers(-(1 << 31), (1 << 31) - 1),
)
def test_a_header_reads_back(
    name: bytes, uuid: bytes, flags: int, event: int, dev: int, count: int, open_count: int
) -> None:
    header = Header(
        data_size=1024,
        name=name,
        uuid=uuid,
        flags=flags,
        event_number=event,
        target_count=count,
        open_count=open_count,
        dev=dev,
    )
    packed = header.pack()
    assert len(packed) == HEADER_SIZE
    found = Header.unpack(packed)
    assert found._replace(name=text(found.name), uuid=text(found.uuid), data=b"") == header
    assert struct.unpack_from("=3I", packed) == (4, 0, 0)
    assert struct.unpack_from("=Q", packed, 40) == (dev,)


def test_what_a_header_says_of_a_device() -> None:
    flags = Flag.SUSPEND | Flag.INACTIVE_PRESENT | Flag.DEFERRED_REMOVE
    header = Header(
        name=b"name\0old", uuid=b"uuid\0", flags=flags, event_number=5, target_count=2, open_count=3, dev=0x0010_FE01
    )
    info = header.info()
    assert (info.name, info.uuid, info.event_number, info.target_count, info.open_count) == ("name", "uuid", 5, 2, 3)
    assert (info.suspended, info.inactive_table, info.deferred_remove) == (True, True, True)
    assert (info.live_table, info.read_only) == (False, False)
    assert (info.number, info.node) == ("254:257", "/dev/dm-257")


@given(major=st.integers(0, 4095), minor=st.integers(0, (1 << 20) - 1))
def test_the_kernels_device_numbers(major: int, minor: int) -> None:
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    assert Header(dev=encoded).info().dev == os.makedev(major, minor)


@given(TARGETS)
def test_a_table_is_packed_as_the_kernel_walks_it(table: list[Target]) -> None:
    packed = dmabi.pack_table(table)
    at, found = 0, []
    for _ in table:
        start, length, status, following, kind = struct.unpack_from("=QQiI16s", packed, at)
        assert (at % 8, following % 8, status) == (0, 0, 0)
        text = packed[at + 40 : at + following]
        assert text.endswith(b"\0")
        found.append(Target(start, length, kind.rstrip(b"\0").decode(), os.fsdecode(text.split(b"\0")[0])))
        at += following
    assert at == len(packed)
    assert found == table


@given(TARGETS)
def test_a_status_reply_counts_from_the_first_record(table: list[Target]) -> None:
    records, at = bytearray(), 0
    for target in table:
        text = os.fsencode(target.text) + b"\0"
        size = 40 + len(text) + -len(text) % 8
        at += size
        records += struct.pack("=QQiI16s", target.start, target.length, 0, at, target.type.encode()) + text
        records += bytes(at - len(records))
    header = Header(data_size=HEADER_SIZE + len(records), target_count=len(table))
    assert list(dmabi.unpack_targets(header.pack() + records, header)) == table


def test_a_list_of_devices() -> None:
    records = _device(0xFE00, "first", 40) + _device(0xFE01, "second with a longer name", 0)
    header = Header(data_size=HEADER_SIZE + len(records))
    assert list(dmabi.unpack_devices(header.pack() + records, header)) == [
        DeviceName("first", os.makedev(254, 0)),
        DeviceName("second with a longer name", os.makedev(254, 1)),
    ]


def test_an_empty_list_of_devices_is_one_record_of_nothing() -> None:
    records = _device(0, "", 0)
    header = Header(data_size=HEADER_SIZE + len(records))
    assert list(dmabi.unpack_devices(header.pack() + records, header)) == []
    assert list(dmabi.unpack_devices(header.pack(), Header(data_size=HEADER_SIZE))) == []


def _device(dev: int, name: str, distance: int) -> bytes:
    record = struct.pack("=QI", dev, distance) + name.encode() + b"\0"
    return record + bytes(max(0, distance - len(record)))


def test_a_list_of_targets() -> None:
    first = struct.pack("=4I", 32, 1, 22, 0) + b"thin-pool\0"
    records = first + bytes(32 - len(first)) + struct.pack("=4I", 0, 1, 4, 2) + b"linear\0"
    header = Header(data_size=HEADER_SIZE + len(records))
    found = list(dmabi.unpack_versions(header.pack() + records, header))
    assert found == [("thin-pool", Version(1, 22, 0)), ("linear", Version(1, 4, 2))]
    assert str(found[0][1]) == "1.22.0"


def test_the_answer_to_a_message_counts_only_where_there_is_one() -> None:
    asked = dmabi.pack_message("create_thin 1", 7)
    assert asked == struct.pack("=Q", 7) + b"create_thin 1\0"
    for flags, answer in ((0, ""), (Flag.DATA_OUT, "0: 1+2")):
        header = Header(data_size=1024, flags=flags)
        assert dmabi.unpack_answer(header.pack() + b"0: 1+2\0rest", header) == answer


@pytest.mark.parametrize("name", ["a", "dmthin-0123abcd-pool", "#+-.:=@_09azAZ", "vg-lv", "x" * 127])
def test_plain_names(name: str) -> None:
    assert check_name(name) == name
    assert check_uuid(name) == name


@given(st.text(min_size=1, max_size=140))
def test_only_what_libdm_leaves_alone_is_a_name(name: str) -> None:
    plain = all(character.isascii() and (character.isalnum() or character in "#+-.:=@_") for character in name)
    good = plain and len(name) <= 127 and name[0] != "-" and name not in (".", "..", "control")
    try:
        assert check_name(name) == name
        assert good
    except InvalidValue:
        assert not good


def test_a_uuid_may_be_empty_and_one_longer_than_a_name() -> None:
    assert check_uuid("") == ""
    assert check_uuid("U" * 128) == "U" * 128
    with pytest.raises(InvalidValue):
        check_uuid("U" * 129)
