"""The records of the ledger as values: the store, its volumes, and containerd's snapshots."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from dmthin.errors import InvalidValue

_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IMAGE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*([/:@]+[a-zA-Z0-9_.-]+)*")
_NAME_LIMIT = 128

SPARE_NAMES = "@spare/"
"""The prefix of the names of spares: snapshots made ahead of a request. They do not count as children."""

FROZEN_NAMES = "@frozen/"
"""The prefix of the names of frozen snapshots: states of volumes in use, kept while they are read. They do not count as
children either."""


class Kind(StrEnum):
    """What a volume is for."""

    BASE = "base"
    IMAGE = "image"
    CONTAINER = "container"

    @property
    def with_article(self) -> str:
        """The kind with its article: `an image`, `a container`."""
        return f"an {self}" if self is Kind.IMAGE else f"a {self}"


class State(StrEnum):
    """The operation in progress on a volume, READY if there is none.

    The process that carries an operation out holds the volume's lock. If the lock is free, the operation was
    interrupted, and the next transaction recovers it: a volume in state MAKING is rolled back, one in state REMOVING is
    removed, one in state GROWING is grown to its recorded size.
    """

    MAKING = "making"
    READY = "ready"
    GROWING = "growing"
    REMOVING = "removing"


class StoreState(StrEnum):
    """The operation in progress on the store as a whole, READY if there is none."""

    MAKING = "making"
    READY = "ready"
    DESTROYING = "destroying"


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume. `size` in bytes; `parent` is the device id of the volume that it descends from, None for a base.

    `created` is in seconds since the epoch. `uses` counts the references to the volume's mount; it has no meaning while
    the volume is not mounted. The device of a `read_only` volume refuses writes.
    """

    device_id: int
    name: str
    kind: Kind
    state: State
    size: int
    file_system: str
    parent: int | None
    created: int
    uses: int = 0
    read_only: bool = False

    @property
    def title(self) -> str:
        """Kind and name, for messages."""
        return f"{self.kind} {self.name}"

    def with_state(self, state: State) -> "Volume":
        """Return the same volume in another state."""
        return replace(self, state=state)


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume to be made. `size` in bytes; `parent` is the volume that it descends from, None for a base.

    `snapshot` is what containerd knows it by; its row is written in the transaction that makes the volume READY.
    """

    name: str
    kind: Kind
    size: int
    file_system: str
    parent: Volume | None
    read_only: bool = False
    snapshot: "NewSnapshot | None" = None


class SnapshotKind(StrEnum):
    """containerd's kinds: an active snapshot is written, a view is read, a committed one has children."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """The row of a snapshot whose volume is still to be made. `created` in nanoseconds since the epoch."""

    snapshotter: str
    key: str
    parent: str
    labels: Mapping[str, str]
    created: int

    def of(self, volume: Volume) -> "Snapshot":
        """Return the snapshot that `volume` is."""
        return Snapshot(volume, self.snapshotter, self.key, self.parent, self.labels, self.created, self.created)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A volume that containerd knows by a key of one snapshotter, or by a name once it is committed.

    `parent` is the name of a committed snapshot, empty for a first layer. `created` and `updated` are nanoseconds since
    the epoch. `source` is the key that a committed snapshot had before. The usage of a committed snapshot is counted
    once, None until then: the `bytes` that it maps and its parent does not, and all its `inodes`.
    """

    volume: Volume
    snapshotter: str
    key: str
    parent: str
    labels: Mapping[str, str]
    created: int
    updated: int
    source: str = ""
    bytes: int | None = None
    inodes: int | None = None

    @property
    def kind(self) -> SnapshotKind:
        if self.volume.kind is Kind.IMAGE:
            return SnapshotKind.COMMITTED
        return SnapshotKind.VIEW if self.volume.read_only else SnapshotKind.ACTIVE

    @property
    def title(self) -> str:
        """Kind and key, for messages."""
        return f"{self.kind} snapshot {self.key!r}"


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """The store's own record. `data` and `metadata` are paths, relative to the store's folder for its own files.

    `pool` is the name of a pool that existed before the store, else empty. `generation` is the transaction id that
    the pool must carry; each activation moves it. `data_size` is the bytes of the pool's data, of which its device
    may have more (0 for a pool that existed before). `data_target` and `metadata_target` (bytes) are set while the pool
    is being extended to them. `clean` is false while the pool is active.

    With a `metadata_end` (bytes, else 0) data and metadata are parts of one disk: the metadata's region ends there and
    the data's begins. `metadata_size` is then the bytes of the metadata's part, as `data_size` is the data's.
    """

    uuid: str
    state: StoreState
    block_size: int
    data: str
    metadata: str
    pool: str
    options: tuple[str, ...]
    generation: int
    clean: bool
    data_size: int = 0
    data_target: int | None = None
    metadata_target: int | None = None
    metadata_size: int = 0
    metadata_end: int = 0

    @property
    def prefix(self) -> str:
        """The prefix of the names of this store's mapped devices."""
        return f"dmthin-{self.uuid[:8]}"

    @property
    def pool_name(self) -> str:
        return self.pool or f"{self.prefix}-pool"

    @property
    def uuid_prefix(self) -> str:
        """The prefix of the device-mapper uuids of this store's devices."""
        return f"DMTHIN-{self.uuid}"

    def device_name(self, device_id: int) -> str:
        return f"{self.prefix}-{device_id}"

    def device_uuid(self, device_id: int) -> str:
        return f"{self.uuid_prefix}-{device_id}"

    def device_id_of(self, device_name: str) -> int | None:
        """Return the device id of the volume with this mapped device; None for the pool, disk parts, other stores."""
        number = device_name.removeprefix(f"{self.prefix}-")
        return int(number) if number != device_name and number.isdecimal() else None


def new_uuid() -> str:
    """Return 32 random hexadecimal digits that identify a store."""
    return os.urandom(16).hex()


def check_name(name: str, kind: Kind) -> str:
    """Return the name if it is valid by Docker's rules, of at most 128 characters. Raises InvalidValue.

    A container's name is [a-zA-Z0-9][a-zA-Z0-9_.-]*; an image's may have / : and @ between such parts.
    """
    pattern = _CONTAINER_NAME if kind is Kind.CONTAINER else _IMAGE_NAME
    more = "" if kind is Kind.CONTAINER else ", and / : @ between them"
    if not name:
        raise InvalidValue(f"the {kind}'s name is empty")
    if len(name) > _NAME_LIMIT:
        raise InvalidValue(f"the {kind}'s name has {len(name)} characters", hint=f"use at most {_NAME_LIMIT}")
    if not pattern.fullmatch(name):
        raise InvalidValue(
            f"invalid {kind} name {name!r}",
            hint=f"use letters, digits, _ . and - after a letter or digit{more}",
        )
    return name
