"""Attributes that archivers record in PAX records: access control lists, SELinux labels, libarchive's encoding."""

import io
import logging
import struct

import pytest

from dmthin.layers.acl import parse_acl
from dmthin.layers.header import Malformed
from dmthin.layers.source import open_source
from tests.support.tars import member, tar

NO_ID = 0xFFFFFFFF


def packed(*entries: tuple[int, int, int]) -> bytes:
    """Return the kernel's form of a list: (tag, permissions, id) of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (b"user::rw-,group::r--,other::---", [(1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID)]),
        (
            b"user::rwx\nuser:1000:rw-\ngroup::r-x\nmask::rwx\nother::r-x\n",  # GNU tar --acls
            [(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 5, NO_ID)],
        ),
        (
            # libarchive, which writes ids beside names
            b"user::rw-,user:lisa:r--:77,user:bob:r-x:5,group::r--,group:wheel:rwx:10,mask::rwx,other::---",
            [(1, 6, NO_ID), (2, 5, 5), (2, 4, 77), (4, 4, NO_ID), (8, 7, 10), (16, 7, NO_ID), (32, 0, NO_ID)],
        ),
        (b"user:root:r--,group:root:r-x", [(2, 4, 0), (8, 5, 0)]),  # looked up here, as GNU tar does
        (b"u::rw-,g::r--,m:r--,o:--- # comment", [(1, 6, NO_ID), (4, 4, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)]),
    ],
)
def test_lists_as_text(text: bytes, entries: list[tuple[int, int, int]]) -> None:
    assert parse_acl(text) == packed(*entries)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"user::rw-,user:no-such-user:r--", "names the unknown user b'no-such-user'"),
        (b"group:no-such-group:r--", "names the unknown group"),
        (b"user:4294967295:rw-", "names the unknown user"),
        (b"owner::rw-", "not an entry"),
        (b"user::rwz", "not an entry"),
        (b"user", "not an entry"),
        (b"user:a:rw-:1:2", "not an entry"),
    ],
)
def test_texts_that_are_no_list(text: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        parse_acl(text)


RECORDS = {
    "SCHILY.acl.access": "user::rw-,group::r--,other::---",
    "SCHILY.xattr.user.both": "of star",
    "LIBARCHIVE.xattr.user.both": "b2YgYmV0dGVy",
    "LIBARCHIVE.xattr.user.a%3Db": "AAH/",
    "LIBARCHIVE.xattr.user.short": "eA",
    "RHT.security.selinux": "system_u:object_r:bin_t:s0",
}


def xattrs(records: dict[str, str], *, layer: bool) -> dict[str, bytes]:
    with open_source(io.BytesIO(tar(member("a", pax_headers=records))), layer=layer) as source:
        [(entry, _)] = source
        return dict(entry.xattrs)


def test_an_import_keeps_what_archivers_record() -> None:
    assert xattrs(RECORDS, layer=False) == {
        "system.posix_acl_access": packed((1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID)),
        "user.both": b"of star",
        "user.a=b": b"\0\x01\xff",
        "user.short": b"x",
        "security.selinux": b"system_u:object_r:bin_t:s0\0",
    }


def test_a_layer_has_what_docker_and_containerd_read() -> None:
    assert xattrs(RECORDS, layer=True) == {"user.both": b"of star"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SCHILY.acl.access", "user:no-such-user:rw-"),
        ("SCHILY.acl.ace", "owner@:rwx"),
        ("SCHILY.fflags", "nodump"),
        ("LIBARCHIVE.xattr.user.x", "not base64!"),
        ("LIBARCHIVE.xattr.", "AAAA"),
    ],
)
def test_what_cannot_be_kept_is_told(key: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert xattrs({key: value}, layer=False) == {}
    assert f"left out {key} of a: " in caplog.text
