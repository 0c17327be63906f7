"""Mapping of owners between a user namespace and the host, as in dockerd's userns-remap."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dmthin.layers.entry import Entry, shown
from dmthin.layers.xattrs import ACL_ENTRY, ACL_GROUP, ACL_USER, ACL_VERSION, ACLS

IdRanges = tuple[tuple[int, int, int], ...]
"""(first id in the container, first id on the host, number of ids) of each range; empty for the identity."""


class Unmapped(Exception):
    """An entry whose owner is in no range. The caller adds the name of the archive or tree."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """A map of user or group ids. The first range that contains an id applies.

    Both methods return None for an id in no range, and the id itself if there are no ranges.
    """

    ranges: IdRanges = ()

    def to_host(self, number: int) -> int | None:
        """Return the id on the host."""
        if not self.ranges:
            return number
        for inside, outside, size in self.ranges:
            if inside <= number < inside + size:
                return number - inside + outside
        return None

    def to_container(self, number: int) -> int | None:
        """Return the id in the container."""
        if not self.ranges:
            return number
        for inside, outside, size in self.ranges:
            if outside <= number < outside + size:
                return number - outside + inside
        return None


@dataclass(frozen=True, slots=True)
class Owners:
    """The maps of users and of groups. The ids in access control lists are mapped as well."""

    users: IdMap = IdMap()
    groups: IdMap = IdMap()

    @property
    def root(self) -> tuple[int, int]:
        """The host's (uid, gid) of the container's root. Raise Unmapped."""
        uid, gid = self.users.to_host(0), self.groups.to_host(0)
        if uid is None or gid is None:
            raise Unmapped("the container's root is not in the id map")
        return uid, gid

    def to_host(self, entry: Entry) -> Entry:
        """Return the entry with its owners as ids of the host. Raise Unmapped."""
        return self._mapped(entry, self.users.to_host, self.groups.to_host)

    def to_container(self, entry: Entry) -> Entry:
        """Return the entry with its owners as ids of the container. Raise Unmapped."""
        return self._mapped(entry, self.users.to_container, self.groups.to_container)

    def _mapped(self, entry: Entry, user: Callable[[int], int | None], group: Callable[[int], int | None]) -> Entry:
        """Return the entry with its owner and the owners in its access control lists mapped. Raise Unmapped."""
        if not (self.users.ranges or self.groups.ranges):
            return entry

        def mapped(kind: str, number: int, mapping: Callable[[int], int | None]) -> int:
            found = mapping(number)
            if found is None:
                raise Unmapped(f"{shown(entry.path)} belongs to {kind} {number}, which is not in the id map")
            return found

        def acl(value: bytes) -> bytes:
            if value[:4] != ACL_VERSION or len(value) % ACL_ENTRY.size != 4:
                return value  # not valid, the kernel rejects it
            out = ACL_VERSION
            for tag, rights, number in ACL_ENTRY.iter_unpack(value[4:]):
                if tag == ACL_USER:
                    number = mapped("user", number, user)
                elif tag == ACL_GROUP:
                    number = mapped("group", number, group)
                out += ACL_ENTRY.pack(tag, rights, number)
            return out

        xattrs = entry.xattrs
        if any(name in xattrs for name in ACLS):
            xattrs = {name: acl(value) if name in ACLS else value for name, value in xattrs.items()}
        return replace(
            entry,
            uid=mapped("user", entry.uid, user),
            gid=mapped("group", entry.gid, group),
            xattrs=xattrs,
        )
