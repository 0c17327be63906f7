"""Reading extended attributes, and the selection of those that a layer contains."""

import errno
import os
import struct
from collections.abc import Mapping

from dmthin.layers.entry import NO_XATTRS

ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
ACLS = (ACL_ACCESS, ACL_DEFAULT)
"""The attributes that are access control lists, acl(5)."""

ACL_VERSION = struct.pack("<I", 2)
"""What the value of each begins with: struct posix_acl_xattr_header of linux/posix_acl_xattr.h."""

ACL_ENTRY = struct.Struct("<HHI")
"""Tag, permissions, id: struct posix_acl_xattr_entry, of which the rest of the value consists."""

ACL_USER, ACL_GROUP = 0x02, 0x08
"""The tags of entries whose id is a user's or a group's."""

_CAPABILITY = b"security.capability"
_CARRIED = (b"user.", b"trusted.")
_CARRIED_EXACTLY = frozenset((_CAPABILITY, *(name.encode() for name in ACLS)))
_OVERLAY = b"trusted.overlay."
_LISTED_TWICE = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")
"""xfs lists access control lists under these names too, beside system.posix_acl_* (xfs_xattr_put_listent)."""

_V2, _V3, _REVISION, _EFFECTIVE = 0x02000000, 0x03000000, 0xFF000000, 1
"""Revisions and flags of struct vfs_ns_cap_data, linux/capability.h. Revision 3 adds the uid of a namespace's root."""


def is_carried(name: bytes) -> bool:
    """Return whether a layer contains this attribute. Security labels and overlayfs' attributes are host-specific."""
    if name in _CARRIED_EXACTLY:
        return True
    return name.startswith(_CARRIED) and not name.startswith(_OVERLAY)


def portable(name: bytes, value: bytes) -> bytes:
    """Return the value as a layer contains it: file capabilities lose the uid of the user namespace's root."""
    if name == _CAPABILITY and len(value) == 24:
        (magic,) = struct.unpack_from("<I", value)
        if magic & _REVISION == _V3:
            return struct.pack("<I", _V2 | magic & _EFFECTIVE) + value[4:20]
    return value


def read_xattrs(target: int | bytes, *, layer: bool = False) -> Mapping[str, bytes]:
    """Return the attributes of an open file, or of a path without following a symbolic link. Raise OSError.

    With `layer`, return only those that a layer contains, in their portable form.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return NO_XATTRS
    if not names:
        return NO_XATTRS
    found = {}
    for name in names:
        raw = os.fsencode(name)
        if raw in _LISTED_TWICE or (layer and not is_carried(raw)):
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        else:
            found[raw.decode("utf-8", "surrogateescape")] = portable(raw, value) if layer else value
    return found or NO_XATTRS
