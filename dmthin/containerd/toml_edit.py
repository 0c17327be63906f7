"""Changes of a TOML text that keep its comments and order, and its former values in comments.

tomlkit keeps comments and order. What it writes is read again by tomllib and compared with the same change to plain
dictionaries, so that a fault of it is an error and not another configuration. The functions on a table take those of
both.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from dmthin.errors import DmthinError, InvalidValue

Table = MutableMapping[str, Any]

_MARK = "dmthin: was "
_UNSET = "not set"
_WAS = re.compile(rf"{_MARK}(.*?)(?: (#.*))?$")


def parsed(text: str) -> dict[str, Any]:
    """Return what a TOML text says, without comments. Raise InvalidValue."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidValue(f"containerd's configuration is not TOML: {error}") from None


def written(edit: Callable[[Table], None], text: str = "") -> str:
    """Return a text with a change to its document. Raise InvalidValue for a text that is not TOML."""
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise InvalidValue(f"containerd's configuration is not TOML: {error}") from None
    edit(document)
    return tomlkit.dumps(document)


def edited(text: str, expected: Mapping[str, Any], edit: Callable[[Table], None]) -> str:
    """Return a text with a change that is to make it say what is expected. Raise InvalidValue, DmthinError."""
    after = written(edit, text)
    if parsed(after) != expected:
        raise DmthinError(
            "the file is written in a way that cannot be changed without a fault",
            hint="add what `dmthin system containerd-config` prints by hand",
        )
    return after


def table(document: Table, *path: str) -> Table:
    """Return a table, made with those around it if it is not there. Raise InvalidValue where there is another value."""
    place = document
    for depth, key in enumerate(path, 1):
        if key not in place:
            made = isinstance(
                place, (tomlkit.TOMLDocument, tomlkit.items.Table, tomlkit.container.OutOfOrderTableProxy)
            )
            place[key] = tomlkit.table(is_super_table=depth < len(path)) if made else {}
        place = place[key]
        if not isinstance(place, MutableMapping):
            raise InvalidValue(f"{'.'.join(path)} is not a table", hint="correct containerd's configuration first")
    return place


def find(document: Table, *path: str) -> Table | None:
    """Return a table, None if it is not there."""
    place: Any = document
    for key in path:
        if not isinstance(place, MutableMapping) or key not in place:
            return None
        place = place[key]
    return place if isinstance(place, MutableMapping) else None


def fill(place: Table, values: Mapping[str, str]) -> None:
    """Set values of a table, of which `restore` knows nothing."""
    for key, value in values.items():
        if place.get(key) != value:
            place[key] = value


def add(place: Table, key: str, *entries: Mapping[str, str]) -> None:
    """Add tables to the array of tables at a key, which is made if it is not there."""
    array: MutableSequence[Any] | None = place.get(key)
    if array is None:
        array = tomlkit.aot() if isinstance(place, tomlkit.items.Table) else []
        place[key] = array
    for entry in entries:
        added = tomlkit.table()
        added.update(entry)
        array.append(added)


def prune(document: Table, *path: str) -> None:
    """Remove a table if it is empty, and those around it that are then."""
    for length in range(len(path), 0, -1):
        around = find(document, *path[: length - 1])
        empty = find(document, *path[:length])
        if around is None or empty is None or empty:
            return
        del around[path[length - 1]]


def replace(place: Table, key: str, value: object, *, remember: bool) -> None:
    """Set a value. With `remember` the one that it replaces is kept in a comment, for `restore`."""
    if place.get(key) == value:
        return
    if not remember:
        place[key] = value
        return
    former = _item(place, key)
    was = _UNSET if former is None else former.as_string()
    after = former.trivia.comment if former is not None else ""
    item = tomlkit.item(value)
    if "\n" not in was:
        item.comment(f"{_MARK}{was} {after}".rstrip())
    place[key] = item


def restore(place: Table) -> None:
    """Give the keys of a table back the values that their comments name."""
    for key in list(place):
        item = _item(place, key)
        found = _WAS.search(item.trivia.comment) if item is not None else None
        if found is None:
            continue
        if found[1] == _UNSET:
            del place[key]
            continue
        place[key] = tomlkit.value(found[1])
        if (restored := _item(place, key)) is not None:
            restored.trivia.comment = found[2] or ""
            restored.trivia.comment_ws = restored.trivia.comment_ws if found[2] else ""


def _item(place: Table, key: str) -> tomlkit.items.Item | None:
    """Return the item at a key of a table, with its comment: the table itself gives truth values without it."""
    if not isinstance(place, tomlkit.items.Table) or key not in place:
        return None
    item = place.value.item(key)
    return item if isinstance(item, tomlkit.items.Item) else None
