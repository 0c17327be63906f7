"""The fields of each listing, in one table that feeds columns, sorting, JSON and -o help."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dmthin.cli.output import one_line
from dmthin.cli.sizes import human

if TYPE_CHECKING:
    from dmthin.store.report import VolumeUsage, VolumeView

T = TypeVar("T")
UNKNOWN = "-"


class Form(Enum):
    """How a value looks: text as it is, bytes, a number, seconds since the epoch, several texts."""

    TEXT = auto()
    SIZE = auto()
    COUNT = auto()
    TIME = auto()
    TEXTS = auto()

    @property
    def right(self) -> bool:
        """Whether it stands at the right of its column."""
        return self in (Form.SIZE, Form.COUNT)


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """One field: its name for -o, -O and JSON, its heading, how it looks, what it means, where it comes from."""

    name: str
    heading: str
    form: Form
    help: str
    get: Callable[[T], Any]
    alias: str = ""

    def text(self, row: T, *, exact: bool = False) -> str:
        """The value for a person, or for a script that wants it `exact`."""
        return shown(self.get(row), self.form, exact=exact)

    def json(self, row: T) -> Any:
        """The value for JSON: sizes and times are integers, unknown is None."""
        value = self.get(row)
        return list(value) if isinstance(value, tuple) else value


def shown(value: Any, form: Form, *, exact: bool = False) -> str:
    """A value as text, `-` where nobody knows it."""
    if value is None or value in ("", ()):
        return UNKNOWN
    match form:
        case Form.SIZE if not exact:
            return human(value)
        case Form.TIME if not exact:
            import time

            return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
        case Form.TEXTS:
            return one_line(",".join(value))
    return one_line(str(value))


def as_json(row: T, fields: Iterable[Field[T]]) -> dict[str, Any]:
    """One row as a JSON object."""
    return {field.name: field.json(row) for field in fields}


VOLUME_FIELDS: "tuple[Field[VolumeView], ...]" = (
    Field("name", "NAME", Form.TEXT, "name of the volume", lambda v: v.name),
    Field("kind", "KIND", Form.TEXT, "base, image or container", lambda v: v.kind),
    Field("size", "SIZE", Form.SIZE, "size that its users see", lambda v: v.size),
    Field("mapped", "MAPPED", Form.SIZE, "what it refers to in the pool, while active", lambda v: v.mapped, "used"),
    Field("parent", "PARENT", Form.TEXT, "volume that it descends from", lambda v: v.parent),
    Field("file_system", "FS", Form.TEXT, "its file system", lambda v: v.file_system, "fs"),
    Field(
        "state",
        "STATE",
        Form.TEXT,
        "inactive, active, open, mounted or suspended; making, growing or removing while that is under way",
        lambda v: v.state,
    ),
    Field("mounts", "MOUNTED AT", Form.TEXTS, "where it is mounted", lambda v: v.mounts, "mount"),
    Field("device", "DEVICE", Form.TEXT, "its block device, while active", lambda v: v.device),
    Field("device_id", "ID", Form.COUNT, "number of its thin device in the pool", lambda v: v.device_id, "id"),
    Field("open_count", "OPEN", Form.COUNT, "how often its device is open, while active", lambda v: v.open_count),
    Field("created", "CREATED", Form.TIME, "when it was made", lambda v: v.created),
)

USAGE_FIELDS: "tuple[Field[VolumeUsage], ...]" = (
    Field("name", "NAME", Form.TEXT, "name of the volume", lambda u: u.name),
    Field("kind", "KIND", Form.TEXT, "base, image or container", lambda u: u.kind),
    Field("size", "SIZE", Form.SIZE, "size that its users see", lambda u: u.size),
    Field("mapped", "MAPPED", Form.SIZE, "what it refers to in the pool", lambda u: u.mapped, "used"),
    Field("exclusive", "EXCLUSIVE", Form.SIZE, "what would come back without it", lambda u: u.exclusive),
    Field("shared", "SHARED", Form.SIZE, "what it shares with other volumes", lambda u: u.shared),
)
