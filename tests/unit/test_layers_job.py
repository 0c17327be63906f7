"""What a worker is told and what it answers, and how ids are mapped."""

import json
import os
import struct
from typing import Any

import pytest

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace, Status
from dmthin.layers.entry import Entry, EntryType
from dmthin.layers.idmap import IdMap, Owners, Unmapped
from dmthin.layers.job import Job, Verb, parse_job, parse_report

JOB = Job(Verb.APPLY, 5, "layer \udcff", parent=6, uid_map=((0, 100000, 65536),), max_entries=7)


def test_a_job_survives_its_way() -> None:
    assert parse_job(JOB.argv(9)[-1]) == (JOB, 9)
    assert JOB.descriptors(9) == (5, 6, 9)
    assert Job(Verb.SIZE, 5, "x").descriptors(9) == (5, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"verb": "remove"},
        {"verb": None},
        {"report": None},
        {"report": "x"},
        {"uid_map": [[1, 2]]},
        {"uid_map": 5},
        {"unknown": 1},
    ],
)
def test_what_is_no_job(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="invalid worker job"):
        parse_job(json.dumps({**json.loads(JOB.argv(9)[-1]), **change}))


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", "{"])
def test_what_is_no_job_at_all(text: str) -> None:
    with pytest.raises(InvalidValue, match="invalid worker job"):
        parse_job(text)


def test_the_environment_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("DMTHIN_FAILPOINT", "3")
    environment = JOB.environment()
    assert set(environment) == {"PYTHONPATH", "LC_ALL", "DMTHIN_FAILPOINT"}
    assert os.path.isdir(environment["PYTHONPATH"].split(":")[0] + "/dmthin")


def test_reports() -> None:
    assert parse_report(b'{"size": 5}') == 5
    with pytest.raises(NoDataSpace) as caught:
        parse_report(b'{"error": {"status": "NO_DATA_SPACE", "message": "full", "hint": "grow"}}')
    assert (caught.value.message, caught.value.hint) == ("full", "grow")


@pytest.mark.parametrize("status", Status)
def test_each_status_has_an_error(status: Status) -> None:
    with pytest.raises(DmthinError) as caught:
        parse_report(json.dumps({"error": {"status": status.name, "message": "m", "hint": ""}}).encode())
    assert caught.value.status in (status, Status.FAILED)
    assert str(caught.value) == "m"


@pytest.mark.parametrize("report", [b"", b'{"size"', b"[]", b'{"error": {"status": "X"}}', b'{"error": 5}', b"\xff"])
def test_a_worker_that_died(report: bytes) -> None:
    with pytest.raises(KernelError, match="died without a report"):
        parse_report(report)


def test_id_maps() -> None:
    ids = IdMap(((0, 100000, 1000), (1000, 5000, 1)))
    assert [ids.to_host(number) for number in (0, 999, 1000, 1001)] == [100000, 100999, 5000, None]
    assert [ids.to_container(number) for number in (100000, 100999, 5000, 0, 101000)] == [0, 999, 1000, None, None]
    assert (IdMap().to_host(7), IdMap().to_container(7)) == (7, 7)
    assert Owners(ids, IdMap()).root == (100000, 0)
    with pytest.raises(Unmapped):
        _ = Owners(IdMap(((1, 2, 3),))).root


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_owners_are_mapped_there_and_back_with_access_control_lists() -> None:
    owners = Owners(IdMap(((0, 100000, 1000),)), IdMap(((0, 200000, 1000),)))
    nobody = 0xFFFFFFFF
    xattrs = {
        "system.posix_acl_access": acl((1, 6, nobody), (2, 4, 7), (4, 4, nobody), (8, 4, 8), (16, 4, nobody)),
        "user.x": b"1",
    }
    entry = Entry(b"f", EntryType.FILE, 0o640, 5, 6, xattrs=xattrs)
    outside = owners.to_host(entry)
    assert (outside.uid, outside.gid) == (100005, 200006)
    assert outside.xattrs == {
        "system.posix_acl_access": acl((1, 6, nobody), (2, 4, 100007), (4, 4, nobody), (8, 4, 200008), (16, 4, nobody)),
        "user.x": b"1",
    }
    assert owners.to_container(outside) == entry
    with pytest.raises(Unmapped, match="f belongs to user 7, which is not in the id map"):
        owners.to_container(entry)
    link = Entry(b"l", EntryType.HARDLINK, 0, 7, 0, link=b"f")
    assert owners.to_host(link).uid == 100007
    assert Owners().to_host(entry) is entry
