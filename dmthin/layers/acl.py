"""Access control lists as tar writers record them: as text in SCHILY.acl.access and SCHILY.acl.default.

star defined the records; GNU tar --acls and libarchive write them too. The text is that of acl(5), in its long or short
form, with an optional fourth field that has the numeric id: `user:lisa:rw-:1000`.
"""

import grp
import pwd
import re
from contextlib import suppress

from dmthin.layers.header import Malformed
from dmthin.layers.xattrs import ACL_ACCESS, ACL_DEFAULT, ACL_ENTRY, ACL_GROUP, ACL_USER, ACL_VERSION

ACL_RECORDS = {b"SCHILY.acl.access": ACL_ACCESS, b"SCHILY.acl.default": ACL_DEFAULT}
"""The extended attribute for each PAX record."""

_NO_ID = 0xFFFFFFFF
_TAGS = {b"user": (0x01, ACL_USER), b"group": (0x04, ACL_GROUP), b"mask": (0x10, 0), b"other": (0x20, 0)}
"""For each word the tag of the entry without a name, and of the one with a name."""

_SHORT = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}
_RIGHTS = {ord("r"): 4, ord("w"): 2, ord("x"): 1}
_ID = re.compile(rb"[0-9]{1,10}")


def parse_acl(text: bytes) -> bytes:
    """Return the value of system.posix_acl_* for a list as text; the kernel checks whether the list is complete.

    GNU tar writes names alone. As it does, look them up on this machine.
    Raise Malformed for text that is not such a list, and for a user or group without an id that this machine knows.
    """
    entries: list[tuple[int, int, int]] = []
    for line in re.split(rb"[,\n]", text):
        words = line.partition(b"#")[0].strip().split(b":")
        if words == [b""]:
            continue
        tags = _TAGS.get(_SHORT.get(words[0], words[0]))
        if len(words) == 2:  # `mask:r--` and `other:r--` in the form of IRIX and Solaris
            words.insert(1, b"")
        if tags is None or not 3 <= len(words) <= 4:
            raise Malformed(f"{line[:60]!r} is not an entry of an access control list")
        tag, number = tags[0], _NO_ID
        if words[1]:
            tag, number = tags[1], _number(words)
        entries.append((tag, _rights(words[2], line), number))
    # The kernel wants them by tag, then by id (posix_acl_valid).
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return ACL_VERSION + b"".join(ACL_ENTRY.pack(*entry) for entry in entries)


def _number(words: list[bytes]) -> int:
    """Return the numeric id of an entry with a name. Raise Malformed."""
    for word in (words[-1] if len(words) == 4 else b"", words[1]):
        if _ID.fullmatch(word) and int(word) < _NO_ID:
            return int(word)
    name = words[1].decode("utf-8", "surrogateescape")
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid if words[0].startswith(b"u") else grp.getgrnam(name).gr_gid
    raise Malformed(f"an access control list names the unknown {words[0].decode()} {words[1][:40]!r}")


def _rights(word: bytes, line: bytes) -> int:
    """Return the permission bits of `rwx`, `r-x` and the like. Raise Malformed."""
    left = word.replace(b"-", b"")
    if not left.translate(None, b"rwx"):
        return sum({_RIGHTS[letter] for letter in left})
    raise Malformed(f"{line[:60]!r} is not an entry of an access control list")
