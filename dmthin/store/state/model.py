"""What the ledger holds, as values: the store's own record and its volumes."""

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
"""How the names of snapshots begin that nobody has asked for yet; they count as nobody's children."""


class Kind(StrEnum):
    """What a volume is for."""

    BASE = "base"
    IMAGE = "image"
    CONTAINER = "container"

    @property
    def with_article(self) -> str:
        """`an image`, `a container`."""
        return f"an {self}" if self is Kind.IMAGE else f"a {self}"


class State(StrEnum):
    """How far the ledger and the pool are with a volume; whatever is not ready is an intent under way.

    An intent whose volume lock nobody holds was left by a process that died: MAKING and REMOVING volumes are removed,
    a GROWING one is grown to its end.
    """

    MAKING = "making"
    READY = "ready"
    GROWING = "growing"
    REMOVING = "removing"


class StoreState(StrEnum):
    """The same for the store as a whole."""

    MAKING = "making"
    READY = "ready"
    DESTROYING = "destroying"


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume. `size` in bytes; `parent` is the device id of the volume that it descends from, None for a base.

    `created` is in seconds since the epoch. `uses` counts those who asked for the volume's mount and have not let go of
    it; it means nothing while the volume is not mounted. The device of a `read_only` volume takes no write.
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
        """What an error calls it."""
        return f"{self.kind} {self.name}"

    def with_state(self, state: State) -> "Volume":
        return replace(self, state=state)


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that is to be made. `size` in bytes; `parent` is what it descends from, None for a base."""

    name: str
    kind: Kind
    size: int
    file_system: str
    parent: Volume | None
    read_only: bool = False


class SnapshotKind(StrEnum):
    """What containerd calls a snapshot: an active one is written, a view read, a committed one has children."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A volume that containerd knows under a key of one snapshotter's, or under a name once it is committed.

    `parent` is such a name, empty for a first layer. `created` and `updated` are nanoseconds since the epoch. `source`
    is the key that a committed one had, and of such a one we keep what was counted once, None until then: `bytes` that
    it has and its parent has not, and all its `inodes`.
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
        """What an error calls it."""
        return f"{self.kind} snapshot {self.key!r}"


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """The store itself. `data` and `metadata` are paths, relative to the store's folder for files of its own.

    `pool` is the name of a pool that was there before the store, else empty. `generation` is the transaction id that
    the pool must carry, moved at each activation. `data_size` is the bytes of the pool's data, of which its device
    may have more (0 for a foreign pool). `data_target` and `metadata_target` (bytes) are set while the pool is being
    extended to them. `clean` is false while the pool is active.

    With a `border` (bytes, else 0) data and metadata are parts of one disk: the metadata's region ends there and the
    data's begins. `metadata_size` is then the bytes of the metadata's part, as `data_size` is the data's.
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
    border: int = 0

    @property
    def prefix(self) -> str:
        """How the kernel's names of this store's devices begin."""
        return f"dmthin-{self.uuid[:8]}"

    @property
    def pool_name(self) -> str:
        return self.pool or f"{self.prefix}-pool"

    @property
    def uuid_prefix(self) -> str:
        """How the device-mapper uuids of this store's devices begin."""
        return f"DMTHIN-{self.uuid}"

    def device_name(self, device_id: int) -> str:
        return f"{self.prefix}-{device_id}"

    def device_uuid(self, device_id: int) -> str:
        return f"{self.uuid_prefix}-{device_id}"

    def device_id_of(self, device_name: str) -> int | None:
        """Which volume has the device of this name; None for the pool, a part of its disk, or another store's."""
        number = device_name.removeprefix(f"{self.prefix}-")
        return int(number) if number != device_name and number.isdecimal() else None


def new_uuid() -> str:
    """32 hexadecimal digits that name a store for ever."""
    return os.urandom(16).hex()


def check_name(name: str, kind: Kind) -> str:
    """The name if Docker would allow it: for a container [a-zA-Z0-9][a-zA-Z0-9_.-]*, for an image also / : and @.

    At most 128 characters. Raises InvalidValue.
    """
    pattern = _CONTAINER_NAME if kind is Kind.CONTAINER else _IMAGE_NAME
    more = "" if kind is Kind.CONTAINER else ", and / : @ between them"
    if not name:
        raise InvalidValue(f"the {kind}'s name is empty")
    if len(name) > _NAME_LIMIT:
        raise InvalidValue(f"the {kind}'s name has {len(name)} characters", hint=f"use at most {_NAME_LIMIT}")
    if not pattern.fullmatch(name):
        raise InvalidValue(
            f"{name!r} is no name for {kind.with_article}",
            hint=f"use letters, digits, _ . and - after a letter or digit{more}",
        )
    return name
