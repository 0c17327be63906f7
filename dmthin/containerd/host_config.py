"""containerd's own config.toml: the tables that it needs for dmthin, merged into a file or taken out of it.

Formats: containerd's docs/PLUGINS.md, docs/cri/config.md, plugins/transfer/plugin.go.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd import toml_edit
from dmthin.containerd.config import SnapshotterConfig
from dmthin.containerd.toml_edit import Table
from dmthin.errors import InvalidValue

DIFF_SUFFIX = "-diff"
"""A proxy plugin's id is its name in the file, so the differ has a name of its own beside its snapshotter's."""

DIFF_PLATFORM = "linux/dmthin"
"""A platform that no host has.

For an entry of `unpack_config` without a differ the transfer service takes any differ of the entry's platform, and asks
no next one: with the host's platform it would unpack the layers of other snapshotters with dmthin, which refuses them.
"""

_PROXIES = "proxy_plugins"
_CRI_1 = ("plugins", "cri", "containerd")
_CRI_2 = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
_CRI_3 = ("plugins", "io.containerd.cri.v1.images")
_DIFF_1 = ("plugins", "diff-service")
_DIFF = ("plugins", "io.containerd.service.v1.diff-service")
_TRANSFER = ("plugins", "io.containerd.transfer.v1.local")
_WALKING = "walking"
_DEFAULT_SNAPSHOTTER = "overlayfs"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What containerd is to have of dmthin.

    `version` is the file's; `cri` makes the first snapshotter that of the kubelet's images and pods; `diff` adds the
    diff service; `transfer` is for containerd 2.x, whose transfer service unpacks what `ctr images pull` fetches.
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
    def diff_path(self) -> tuple[str, ...]:
        """The table of the order of differs: in a file of version 1 plugins have their short names."""
        return _DIFF_1 if self.version == 1 else _DIFF

    @property
    def cri_path(self) -> tuple[str, ...]:
        """The table of the kubelet's snapshotter. containerd 2.x converts that of version 2, but not of version 1."""
        if self.version == 1 and not self.transfer:
            return _CRI_1
        return _CRI_2 if self.version == 2 else _CRI_3

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the snapshotters."""
        return tuple(config.name for config in self.snapshotters)


def version_of(text: str) -> int | None:
    """Return the version of a config.toml: 1 without one, None for a file without any key. Raise InvalidValue."""
    keys = toml_edit.parsed(text)
    version = keys.get("version", 1)
    if not isinstance(version, int) or version not in (1, 2, 3):
        raise InvalidValue(f"version = {version!r}: dmthin knows the versions 1, 2 and 3 of containerd's configuration")
    return version if keys else None


def printed(wanted: Wanted) -> str:
    """Return the tables for a file that has none of them yet."""
    return toml_edit.written(lambda document: _apply(document, wanted, remember=False))


def merged(text: str, wanted: Wanted) -> str:
    """Return the text of a config.toml with what is wanted in it; the same text if it is there already.

    A value that is replaced stays in a comment, for `without`. Raise InvalidValue for a file that is not TOML.
    """
    expected = toml_edit.parsed(text)
    if not expected:
        expected["version"] = wanted.version
        text = f"{text.rstrip()}\nversion = {wanted.version}\n".lstrip()
    before = toml_edit.parsed(text)
    _apply(expected, wanted, remember=False)
    if expected == before:
        return text
    return toml_edit.edited(text, expected, lambda document: _apply(document, wanted, remember=True))


def without(text: str, wanted: Wanted) -> str:
    """Return the text of a config.toml without what `merged` has put in; values that it replaced come back.

    Raise InvalidValue for a file that is not TOML.
    """
    after = toml_edit.written(lambda document: _take_out(document, wanted), text).rstrip("\n") + "\n"
    toml_edit.parsed(after)
    return after


def has_all(text: str, wanted: Wanted) -> bool:
    """Return whether a config.toml has the wanted proxy plugins. Raise InvalidValue for a file that is not TOML."""
    proxies = toml_edit.parsed(text).get(_PROXIES, {})
    return all(proxies.get(name, {}).get("address") == str(wanted.socket) for name in wanted.names)


def _apply(document: Table, wanted: Wanted, *, remember: bool) -> None:
    """Put what is wanted into a document. With `remember`, replaced values go into comments, which dicts have not."""
    for config in wanted.snapshotters:
        proxy = toml_edit.table(document, _PROXIES, config.name)
        toml_edit.fill(proxy, {"type": "snapshot", "address": str(wanted.socket)})
        exports = {"root": str(config.root), "enable_remote_snapshot_annotations": "true"}
        toml_edit.fill(toml_edit.table(proxy, "exports"), exports)
    if wanted.diff:
        differ = {"type": "diff", "address": str(wanted.socket), "platform": DIFF_PLATFORM}
        toml_edit.fill(toml_edit.table(document, _PROXIES, wanted.differ), differ)
        differs = toml_edit.table(document, *wanted.diff_path)
        order = [str(name) for name in differs.get("default", [_WALKING])]
        if wanted.differ not in order:
            toml_edit.replace(differs, "default", [wanted.differ, *order], remember=remember)
    if wanted.cri:
        cri = toml_edit.table(document, *wanted.cri_path)
        toml_edit.replace(cri, "snapshotter", wanted.names[0], remember=remember)
        toml_edit.replace(cri, "disable_snapshot_annotations", False, remember=remember)
    if wanted.transfer:
        _add_unpacking(toml_edit.table(document, *_TRANSFER), wanted)


def _add_unpacking(transfer: Table, wanted: Wanted) -> None:
    """Add the snapshotters to the list of the transfer service, which replaces containerd's own default."""
    differ = wanted.differ if wanted.diff else _WALKING
    if "unpack_config" not in transfer:
        toml_edit.add(transfer, "unpack_config", _unpacking(_DEFAULT_SNAPSHOTTER, _WALKING))
    for name in wanted.names:
        there = next((entry for entry in transfer["unpack_config"] if entry.get("snapshotter") == name), None)
        if there is None:
            toml_edit.add(transfer, "unpack_config", _unpacking(name, differ))
        else:
            toml_edit.fill(there, {"differ": differ})


def _unpacking(snapshotter: str, differ: str) -> dict[str, str]:
    """Return the entry of `unpack_config` for a snapshotter: layers of the host's platform, unpacked by a differ."""
    machine = platform.machine()
    host = f"linux/{_ARCHITECTURES.get(machine, machine)}"
    return {"platform": host, "snapshotter": snapshotter, "differ": differ}


def _take_out(document: Table, wanted: Wanted) -> None:
    proxies = document.get(_PROXIES, {})
    for name in (*wanted.names, wanted.differ):
        if proxies.get(name, {}).get("address") == str(wanted.socket):
            del proxies[name]
    for path in (_DIFF_1, _DIFF, _CRI_1, _CRI_2, _CRI_3):
        if (table := toml_edit.find(document, *path)) is not None:
            toml_edit.restore(table)
            toml_edit.prune(document, *path)
    if (transfer := toml_edit.find(document, *_TRANSFER)) is not None and "unpack_config" in transfer:
        entries = transfer["unpack_config"]
        for index in reversed(range(len(entries))):
            if entries[index].get("snapshotter") in wanted.names:
                del entries[index]
        if [entry.unwrap() for entry in entries] == [_unpacking(_DEFAULT_SNAPSHOTTER, _WALKING)]:
            del transfer["unpack_config"]
        toml_edit.prune(document, *_TRANSFER)
