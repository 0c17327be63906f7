"""Requests of the graphdriver plugin protocol as values, checked: dockerd's `daemon/graphdriver/proxy.go`.

dockerd leaves empty fields out, so what is missing is empty. What it repeats after a broken connection has lost its
body, so an empty body is an error and never a request without fields.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmthin.errors import InvalidValue

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAP_KEYS = (("container_id", "ContainerID"), ("host_id", "HostID"), ("size", "Size"))

IdRanges = tuple[tuple[int, int, int], ...]
"""Ranges of ids as (first in the container, first on the host, how many); empty: they are the same."""


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What dockerd says first, at each of its starts."""

    home: Path
    options: tuple[str, ...]
    uid_ranges: IdRanges
    gid_ranges: IdRanges


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """A call about one layer. `options` are the storage options of that layer, as `key=value`."""

    id: str
    parent: str = ""
    mount_label: str = ""
    options: tuple[str, ...] = ()


def parse_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a body. Raises InvalidValue."""
    if not body:
        raise InvalidValue("the request has no body", hint="dockerd repeats a broken request without it: try again")
    try:
        content = json.loads(body)
    except ValueError as error:
        raise InvalidValue(f"the request is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidValue("the request is no JSON object")
    return content


def parse_init(content: Mapping[str, Any]) -> InitRequest:
    """The Init request. Raises InvalidValue."""
    home = _text(content, "Home")
    if not home.startswith("/"):
        raise InvalidValue(f"Home: {home!r} is not an absolute path")
    options = content.get("Opts") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidValue("Opts is not a list of texts")
    return InitRequest(Path(home), tuple(options), _ranges(content, "UIDMaps"), _ranges(content, "GIDMaps"))


def parse_layer(content: Mapping[str, Any]) -> LayerRequest:
    """A request about one layer. Raises InvalidValue."""
    options = content.get("StorageOpt") or {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise InvalidValue("StorageOpt is not an object of texts")
    parent = _text(content, "Parent")
    return LayerRequest(
        id=check_id(_text(content, "ID")),
        parent=check_id(parent) if parent else "",
        mount_label=_check_label(_text(content, "MountLabel")),
        options=tuple(f"{key}={value}" for key, value in options.items()),
    )


def check_id(text: str) -> str:
    """A layer's id, which becomes the name of a folder: Docker's are 64 hexadecimal digits, BuildKit's 25 characters.

    Raises InvalidValue.
    """
    if not _ID.fullmatch(text):
        raise InvalidValue(f"{text[:200]!r} is no id of a layer")
    return text


def _check_label(text: str) -> str:
    if '"' in text or "\0" in text:
        raise InvalidValue(f"MountLabel: {text[:200]!r} is no label")
    return text


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key) or ""
    if not isinstance(value, str):
        raise InvalidValue(f"{key} is not a text")
    return value


def _ranges(content: Mapping[str, Any], key: str) -> IdRanges:
    """The id map of that name; clients spell its fields in two ways."""
    entries = content.get(key) or []
    try:
        ranges = tuple(
            tuple(int(entry[one] if one in entry else entry[other]) for one, other in _MAP_KEYS) for entry in entries
        )
    except (TypeError, KeyError, ValueError):
        raise InvalidValue(f"{key} is no list of id ranges") from None
    return tuple((inside, outside, count) for inside, outside, count in ranges)
