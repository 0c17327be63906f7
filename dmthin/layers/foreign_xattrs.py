"""Extended attributes in PAX records that Docker and containerd do not read: those of GNU tar, star and libarchive.

They are kept when an image is imported, as the archiver that wrote them would keep them. For a layer of Docker or
containerd they are ignored, as these engines do.
"""

import base64
import binascii
import logging
import urllib.parse
from collections.abc import Mapping

from dmthin.layers.acl import ACL_RECORDS, parse_acl
from dmthin.layers.entry import shown
from dmthin.layers.header import Malformed

logger = logging.getLogger(__name__)

_LIBARCHIVE = b"LIBARCHIVE.xattr."
"""Followed by the name in percent encoding; the value is base64 without padding (archive_write_set_format_pax.c)."""

_SELINUX = b"RHT.security.selinux"
"""The label as text, by GNU tar --selinux."""

_DROPPED = (b"SCHILY.acl.ace", b"SCHILY.fflags")
"""Attributes that Linux has no place for: NFSv4 access control lists, and BSD's file flags."""


def foreign_xattrs(records: Mapping[bytes, bytes], path: bytes) -> dict[str, bytes]:
    """Return the attributes in the PAX records of an entry. Log a warning for one that cannot be kept."""
    found: dict[str, bytes] = {}
    for key, value in records.items():
        try:
            if key in ACL_RECORDS:
                found[ACL_RECORDS[key]] = parse_acl(value)
            elif key == _SELINUX:
                found["security.selinux"] = value.rstrip(b"\0") + b"\0"
            elif key.startswith(_LIBARCHIVE):
                name = urllib.parse.unquote_to_bytes(key[len(_LIBARCHIVE) :])
                if not name or b"\0" in name:
                    raise Malformed("it has no proper name")
                data = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
                found[name.decode("utf-8", "surrogateescape")] = data
            elif key in _DROPPED:
                raise Malformed("Linux has no such attribute")
        except (Malformed, binascii.Error) as error:
            logger.warning("left out %s of %s: %s", shown(key), shown(path), error)
    return found
