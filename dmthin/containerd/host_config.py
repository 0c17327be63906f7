"""containerd's own config.toml: the tables that it needs for dmthin, merged into a file or taken out of it.

tomlkit keeps comments and order. What it writes is read again by tomllib and compared with the same change to plain
dictionaries, so that a fault of it is an error and not another configuration. Formats: containerd's docs/PLUGINS.md,
docs/cri/config.md, plugins/transfer/plugin.go.
"""

import platform
import re
import tomllib
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from dmthin.containerd.config import SnapshotterConfig
from dmthin.errors import DmthinError, InvalidValue

DIFF_SUFFIX = "-diff"
"""A proxy plugin's id is its name in the file, so the differ has a name of its own beside its snapshotter's."""

_PROXIES = "proxy_plugins"
_CRI_2 = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
_CRI_3 = ("plugins", "io.containerd.cri.v1.images")
_DIFF = ("plugins", "io.containerd.service.v1.diff-service")
_TRANSFER = ("plugins", "io.containerd.transfer.v1.local")
_WALKING = "walking"
_DEFAULT_SNAPSHOTTER = "overlayfs"
_MARK = "dmthin: was "
_UNSET = "not set"
_WAS = re.compile(rf"{_MARK}(.*?)(?: (#.*))?$")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}

Table = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What containerd is to have of dmthin.

    `version` is the file's; `cri` makes the first snapshotter that of the kubelet's images and pods; `diff` adds the
    diff service; `transfer` names the snapshotters to the
    transfer service of containerd 2.x, which unpacks what `ctr images pull` fetches.
    """

    snapshotters: tuple[SnapshotterConfig, ...]
    socket: Path
    version: int = 2
    cri: bool = False
    diff: bool = False
    transfer: bool = False

    @property
    def differ(self) -> str:
        """The id of the differ's proxy plugin."""
        return self.snapshotters[0].name + DIFF_SUFFIX

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the snapshotters."""
        return tuple(config.name for config in self.snapshotters)


def version_of(text: str) -> int | None:
    """Return the version of a config.toml: 1 without one, None for a file without any key. Raise InvalidValue."""
    keys = _parsed(text)
    version = keys.get("version", 1)
    if not isinstance(version, int) or version not in (1, 2, 3):
        raise InvalidValue(f"version = {version!r}: dmthin knows the versions 1, 2 and 3 of containerd's configuration")
    return version if keys else None


def printed(wanted: Wanted) -> str:
    """Return the tables for a file that has none of them yet."""
    document = tomlkit.document()
    _apply(document, wanted, remember=False)
    return tomlkit.dumps(document)


def merged(text: str, wanted: Wanted) -> str:
    """Return the text of a config.toml with what is wanted in it; the same text if it is there already.

    A value that is replaced stays in a comment, for `without`. Raise InvalidValue for a file that is not TOML, or one
    of version 1 for more than the proxy plugins: plugins have other names there.
    """
    if wanted.version == 1 and (wanted.cri or wanted.diff):
        raise InvalidValue(
            "the file has no `version`, or version 1, in which --cri and --diff have no effect",
            hint="convert it first: containerd config migrate (2.x), or see containerd's docs/PLUGINS.md",
        )
    expected = _parsed(text)
    if not expected:
        expected["version"] = wanted.version
        text = f"{text.rstrip()}\nversion = {wanted.version}\n".lstrip()
    before = _parsed(text)
    _apply(expected, wanted, remember=False)
    if expected == before:
        return text
    return _edited(text, expected, lambda document: _apply(document, wanted, remember=True))


def without(text: str, wanted: Wanted) -> str:
    """Return the text of a config.toml without what `merged` has put in; values that it replaced come back.

    Raise InvalidValue for a file that is not TOML.
    """
    document = _read(text)
    _take_out(document, wanted)
    after = tomlkit.dumps(document).rstrip("\n") + "\n"
    _parsed(after)
    return after


def has_all(text: str, wanted: Wanted) -> bool:
    """Return whether a config.toml has the wanted proxy plugins. Raise InvalidValue for a file that is not TOML."""
    proxies = _parsed(text).get(_PROXIES, {})
    return all(proxies.get(name, {}).get("address") == str(wanted.socket) for name in wanted.names)


def _apply(document: Table, wanted: Wanted, *, remember: bool) -> None:
    """Put what is wanted into a document. With `remember`, replaced values go into comments, which dicts have not."""
    for config in wanted.snapshotters:
        proxy = _table(document, _PROXIES, config.name)
        _fill(proxy, {"type": "snapshot", "address": str(wanted.socket)})
        exports = {"root": str(config.root), "enable_remote_snapshot_annotations": "true"}
        _fill(_table(proxy, "exports"), exports)
    if wanted.diff:
        _fill(_table(document, _PROXIES, wanted.differ), {"type": "diff", "address": str(wanted.socket)})
        differs = _table(document, *_DIFF)
        order = [str(name) for name in differs.get("default", [_WALKING])]
        if wanted.differ not in order:
            _set(differs, "default", [wanted.differ, *order], remember=remember)
    if wanted.cri:
        cri = _table(document, *(_CRI_3 if wanted.version == 3 else _CRI_2))
        _set(cri, "snapshotter", wanted.names[0], remember=remember)
        _set(cri, "disable_snapshot_annotations", False, remember=remember)
    if wanted.transfer:
        _add_unpacking(_table(document, *_TRANSFER), wanted)


def _add_unpacking(transfer: Table, wanted: Wanted) -> None:
    """Add the snapshotters to the list of the transfer service, which replaces containerd's own default."""
    differ = wanted.differ if wanted.diff else _WALKING
    entries = transfer.get("unpack_config")
    ours = {name: _unpacking(name, differ) for name in wanted.names}
    if entries is None:
        entries = tomlkit.aot() if isinstance(transfer, tomlkit.items.Table) else []
        transfer["unpack_config"] = entries
        entries.append(_unpacking(_DEFAULT_SNAPSHOTTER, _WALKING))
    for name, entry in ours.items():
        for there in entries:
            if there.get("snapshotter") == name:
                _fill(there, {"differ": differ})
                break
        else:
            entries.append(entry)


def _unpacking(snapshotter: str, differ: str) -> Table:
    machine = platform.machine()
    entry = tomlkit.table()
    entry.update(
        {
            "platform": f"linux/{_ARCHITECTURES.get(machine, machine)}",
            "snapshotter": snapshotter,
            "differ": differ,
        }
    )
    return entry


def _take_out(document: Table, wanted: Wanted) -> None:
    proxies = document.get(_PROXIES, {})
    for name in (*wanted.names, wanted.differ):
        if proxies.get(name, {}).get("address") == str(wanted.socket):
            del proxies[name]
    for path in (_DIFF, _CRI_2, _CRI_3):
        if (table := _find(document, *path)) is not None:
            for key in list(table):
                _restore(table, key)
            _prune(document, *path)
    if (transfer := _find(document, *_TRANSFER)) is not None and "unpack_config" in transfer:
        entries = transfer["unpack_config"]
        for index in reversed(range(len(entries))):
            if entries[index].get("snapshotter") in wanted.names:
                del entries[index]
        if [entry.unwrap() for entry in entries] == [_unpacking(_DEFAULT_SNAPSHOTTER, _WALKING)]:
            del transfer["unpack_config"]
        _prune(document, *_TRANSFER)


def _set(table: Table, key: str, value: object, *, remember: bool) -> None:
    """Set a value; the one that it replaces is kept in a comment."""
    before = table.get(key)
    if before == value:
        return
    if not remember:
        table[key] = value
        return
    former = _item(table, key)
    was = _UNSET if former is None else former.as_string()
    after = former.trivia.comment if former is not None else ""
    item = tomlkit.item(value)
    if "\n" not in was:
        item.comment(f"{_MARK}{was} {after}".rstrip())
    table[key] = item


def _restore(table: Table, key: str) -> None:
    """Give a key back the value that its comment names."""
    item = _item(table, key)
    found = _WAS.search(item.trivia.comment) if item is not None else None
    if found is None:
        return
    if found[1] == _UNSET:
        del table[key]
        return
    table[key] = tomlkit.value(found[1])
    if (restored := _item(table, key)) is not None:
        restored.trivia.comment = found[2] or ""
        restored.trivia.comment_ws = restored.trivia.comment_ws if found[2] else ""


def _item(table: Table, key: str) -> tomlkit.items.Item | None:
    """Return the item at a key of a table, with its comment: the table itself gives truth values without it."""
    if not isinstance(table, tomlkit.items.Table) or key not in table:
        return None
    item = table.value.item(key)
    return item if isinstance(item, tomlkit.items.Item) else None


def _table(document: Table, *path: str) -> Table:
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


def _find(document: Table, *path: str) -> Table | None:
    place: Any = document
    for key in path:
        if not isinstance(place, MutableMapping) or key not in place:
            return None
        place = place[key]
    return place if isinstance(place, MutableMapping) else None


def _fill(table: Table, values: dict[str, str]) -> None:
    for key, value in values.items():
        if table.get(key) != value:
            table[key] = value


def _prune(document: Table, *path: str) -> None:
    """Remove a table if it is empty, and those around it that are then."""
    for length in range(len(path), 0, -1):
        around = _find(document, *path[: length - 1])
        table = _find(document, *path[:length])
        if around is None or table is None or table:
            return
        del around[path[length - 1]]


def _edited(text: str, expected: dict[str, Any], edit: Callable[[Table], None]) -> str:
    document = _read(text)
    edit(document)
    after = tomlkit.dumps(document)
    if _parsed(after) != expected:
        raise DmthinError(
            "the file is written in a way that cannot be changed without a fault",
            hint="add what `dmthin system containerd-config` prints by hand",
        )
    return after


def _read(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise InvalidValue(f"containerd's configuration is not TOML: {error}") from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidValue(f"containerd's configuration is not TOML: {error}") from None
