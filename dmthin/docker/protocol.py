"""Parsing and validation of requests of the graphdriver plugin protocol (moby's daemon/graphdriver/proxy.go).

dockerd omits empty fields, so a missing field is empty. A request that it repeats after a connection failure has lost
its body, so an empty body is an error, and not a request without fields.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmthin.errors import InvalidValue
from dmthin.layers.idmap import IdRanges

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAP_KEYS = (("container_id", "ContainerID"), ("host_id", "HostID"), ("size", "Size"))


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The first request of dockerd after each of its starts. `home` is the directory of the driver."""

    home: Path
    options: tuple[str, ...]
    uid_ranges: IdRanges
    gid_ranges: IdRanges


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """A request about one layer. `options` are the storage options of this layer, as `key=value`."""

    id: str
    parent: str = ""
    mount_label: str = ""
    options: tuple[str, ...] = ()


def parse_object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a request's body. Raise InvalidValue."""
    if not body:
        raise InvalidValue(
            "the request has no body", hint="dockerd repeats a failed request without its body: try again"
        )
    try:
        content = json.loads(body)
    except ValueError as error:
        raise InvalidValue(f"the request is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidValue("the request is not a JSON object")
    return content


def parse_init(content: Mapping[str, Any]) -> InitRequest:
    """Return the Init request. Raise InvalidValue."""
    home = _string(content, "Home")
    if not home.startswith("/"):
        raise InvalidValue(f"Home: {home!r} is not an absolute path")
    options = content.get("Opts") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidValue("Opts is not a list of strings")
    return InitRequest(Path(home), tuple(options), _ranges(content, "UIDMaps"), _ranges(content, "GIDMaps"))


def parse_layer(content: Mapping[str, Any]) -> LayerRequest:
    """Return a request about one layer. Raise InvalidValue."""
    options = content.get("StorageOpt") or {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise InvalidValue("StorageOpt is not an object with string values")
    parent = _string(content, "Parent")
    return LayerRequest(
        id=check_id(_string(content, "ID")),
        parent=check_id(parent) if parent else "",
        mount_label=_check_label(_string(content, "MountLabel")),
        options=tuple(f"{key}={value}" for key, value in options.items()),
    )


def check_id(text: str) -> str:
    """Return a layer's id if it is valid as the name of a directory. Raise InvalidValue.

    Ids of Docker are 64 hexadecimal digits, those of BuildKit 25 characters.
    """
    if not _ID.fullmatch(text):
        raise InvalidValue(f"invalid layer id {text[:200]!r}")
    return text


def _check_label(text: str) -> str:
    """Return an SELinux label that can be quoted in a mount option. Raise InvalidValue."""
    if '"' in text or "\0" in text:
        raise InvalidValue(f"MountLabel: invalid label {text[:200]!r}")
    return text


def _string(content: Mapping[str, Any], key: str) -> str:
    """Return a string field, empty if it is missing or null. Raise InvalidValue."""
    value = content.get(key) or ""
    if not isinstance(value, str):
        raise InvalidValue(f"{key} is not a string")
    return value


def _ranges(content: Mapping[str, Any], key: str) -> IdRanges:
    """Return the id map in a field; clients use either of two spellings for its keys. Raise InvalidValue."""
    entries = content.get(key) or []
    try:
        ranges = tuple(
            tuple(int(entry[one] if one in entry else entry[other]) for one, other in _MAP_KEYS) for entry in entries
        )
    except (TypeError, KeyError, ValueError):
        raise InvalidValue(f"{key} is not a list of id ranges") from None
    return tuple((inside, outside, count) for inside, outside, count in ranges)
