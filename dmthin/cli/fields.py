"""The fields of volumes and of their usage, from which columns, sorting, JSON and -o help are derived."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dmthin.cli.output import one_line
from dmthin.cli.sizes import human
from dmthin.store.owners import Owner, short

if TYPE_CHECKING:
    from dmthin.store.report import VolumeUsage, VolumeView

T = TypeVar("T")
UNKNOWN = "-"


class Format(Enum):
    """The type and format of a value: a text, a size in bytes, a number, seconds since the epoch, a list of texts.

    A NAME is a text in which ids may be shortened.
    """

    TEXT = auto()
    NAME = auto()
    SIZE = auto()
    COUNT = auto()
    TIME = auto()
    TEXTS = auto()

    @property
    def right(self) -> bool:
        """Whether the column is right-aligned."""
        return self in (Format.SIZE, Format.COUNT)


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """One field: its name for -o, -O and JSON, heading, format, description, and the getter of its value."""

    name: str
    heading: str
    format: Format
    help: str
    get: Callable[[T], Any]
    alias: str = ""

    def text(self, row: T, *, exact: bool = False, brief: bool = False) -> str:
        """Return the value as text; with `exact`, sizes in bytes and times in seconds since the epoch."""
        return shown(self.get(row), self.format, exact=exact, brief=brief)

    def json(self, row: T) -> Any:
        """Return the value for JSON: sizes and times are integers, an unknown value is None."""
        value = self.get(row)
        return list(value) if isinstance(value, tuple) else value


def shown(value: Any, format: Format, *, exact: bool = False, brief: bool = False) -> str:
    """Return a value as text, `-` if it is unknown; with `brief`, ids in names have 12 digits."""
    if value is None or value in ("", ()):
        return UNKNOWN
    match format:
        case Format.SIZE if not exact:
            return human(value)
        case Format.TIME if not exact:
            import time

            return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
        case Format.NAME if brief:
            return one_line(short(value))
        case Format.TEXTS:
            return one_line(",".join(value))
    return one_line(str(value))


def as_json(row: T, fields: Iterable[Field[T]]) -> dict[str, Any]:
    """Return one row as a JSON object."""
    return {field.name: field.json(row) for field in fields}


def _owners(owner_of: Callable[[T], Owner | None]) -> tuple[Field[T], ...]:
    """Return the fields of a row's owner."""

    def of(row: T, name: str) -> str | None:
        return getattr(owner_of(row), name, None) or None

    return (
        Field(
            "engine_name",
            "ENGINE NAME",
            Format.NAME,
            "what the engine that has the volume calls it: a container, an image",
            lambda row: of(row, "name"),
        ),
        Field("engine", "ENGINE", Format.TEXT, "the engine that has the volume", lambda row: of(row, "engine")),
        Field("engine_id", "ENGINE ID", Format.NAME, "the engine's id of it", lambda row: of(row, "id")),
    )


OWNER_FIELDS = frozenset({"engine_name", "engine", "engine_id"})
"""The names of the fields of `_owners`, which need the engines' records."""

VOLUME_FIELDS: "tuple[Field[VolumeView], ...]" = (
    Field("name", "NAME", Format.NAME, "name of the volume", lambda v: v.name),
    Field("kind", "KIND", Format.TEXT, "base, image or container", lambda v: v.kind),
    Field("size", "SIZE", Format.SIZE, "virtual size", lambda v: v.size),
    Field("mapped", "MAPPED", Format.SIZE, "space mapped in the pool, while active", lambda v: v.mapped, "used"),
    Field("parent", "PARENT", Format.NAME, "volume of which it is a snapshot", lambda v: v.parent),
    Field("file_system", "FS", Format.TEXT, "type of its file system", lambda v: v.file_system, "fs"),
    Field(
        "state",
        "STATE",
        Format.TEXT,
        "inactive, active, open, mounted or suspended; making, growing or removing during such a change",
        lambda v: v.state,
    ),
    Field("mounts", "MOUNTED AT", Format.TEXTS, "mount points", lambda v: v.mounts, "mount"),
    Field("device", "DEVICE", Format.TEXT, "block device, while active", lambda v: v.device),
    Field("device_id", "ID", Format.COUNT, "thin device id in the pool", lambda v: v.device_id, "id"),
    Field("open_count", "OPEN", Format.COUNT, "open count of the block device, while active", lambda v: v.open_count),
    Field("created", "CREATED", Format.TIME, "creation time", lambda v: v.created),
    *_owners(lambda v: v.owner),
)

USAGE_FIELDS: "tuple[Field[VolumeUsage], ...]" = (
    Field("name", "NAME", Format.NAME, "name of the volume", lambda u: u.name),
    Field("kind", "KIND", Format.TEXT, "base, image or container", lambda u: u.kind),
    Field("size", "SIZE", Format.SIZE, "virtual size", lambda u: u.size),
    Field("mapped", "MAPPED", Format.SIZE, "space mapped in the pool", lambda u: u.mapped, "used"),
    Field("exclusive", "EXCLUSIVE", Format.SIZE, "space that its removal frees", lambda u: u.exclusive),
    Field("shared", "SHARED", Format.SIZE, "space shared with other volumes", lambda u: u.shared),
    *_owners(lambda u: u.owner),
)
