"""dockerd's own records of images and containers, beside the store: which layer belongs to which of them.

Of the layer store (layer/filestore.go in moby): `image/DRIVER/layerdb/sha256/CHAIN/` has `cache-id` (the name of the
layer), `diff` (the digest of its tar), `parent` and `tar-split.json.gz`; `image/DRIVER/layerdb/mounts/CONTAINER/` has
`mount-id` and `init-id` (the names of a container's two layers). Of its image store: `repositories.json`, and
`imagedb/content/sha256/ID` with the configuration of each image. Of its containers: `containers/ID/config.v2.json`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmthin.errors import NotFound
from dmthin.oci import chain_ids, diff_ids
from dmthin.units import MIB

_LARGEST = 16 * MIB
"""Bytes of a record that is read as a whole."""

_LONGEST_NAME = 512
_CONTAINER_NAME = re.compile(r"/?([a-zA-Z0-9][a-zA-Z0-9_.-]{0,255})")
"""A container's name as Docker restricts it (names.RestrictedNameChars), in a record with a slash before it."""

_DAEMON_CONFIG = Path("/etc/docker/daemon.json")
_DATA_ROOT = Path("/var/lib/docker")


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer: its chain id, its volume, the digest of its tar, and where dockerd keeps the tar without contents."""

    chain: str
    volume: str
    diff: str
    tar_split: Path


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: its id (hexadecimal), its names such as `debian:12`, and the chain ids of its layers, lowest first."""

    id: str
    names: tuple[str, ...]
    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """The layers of one container or build step: the volume of its root, and of the layer below, empty without one.

    `name` is empty for a build step, and for a container that is being made.
    """

    id: str
    name: str
    root: str
    init: str


class DockerRecords:
    """The records of the dockerd whose driver has its store in `home`, which is `<data-root>/DRIVER`.

    Raise NotFound if there are none: another front end uses the store.
    """

    def __init__(self, home: Path) -> None:
        self._root = home.parent / "image" / home.name
        if not (self._root / "layerdb").is_dir():
            raise NotFound(
                f"the store in {home} is not a dockerd's: there is no {self._root / 'layerdb'}",
                hint="only dockerd keeps a record of each layer's tar; pass its store: --root /var/lib/docker/dmthin",
            )

    def layers(self) -> Iterator[LayerRecord]:
        """Yield the layers of all images, by chain id."""
        for folder in sorted((self._root / "layerdb" / "sha256").glob("*")):
            volume, diff = _text(folder / "cache-id"), _text(folder / "diff")
            if volume and diff:
                yield LayerRecord(f"sha256:{folder.name}", volume, diff, folder / "tar-split.json.gz")

    def images(self) -> dict[str, list[str]]:
        """Return the names of the images that contain each layer, by chain id; an image without a name by its id."""
        found: dict[str, list[str]] = {}
        for image in self.image_records():
            for chain in image.chains:
                found.setdefault(chain, []).extend(image.names or (image.id[:12],))
        return found

    def image_records(self) -> Iterator[ImageRecord]:
        """Yield the images, by id."""
        names: dict[str, list[str]] = {}
        with suppress(ValueError, AttributeError, TypeError, KeyError):
            for references in _json(self._root / "repositories.json")["Repositories"].values():
                for name, identity in references.items():
                    if "@" not in name and len(name) <= _LONGEST_NAME:
                        names.setdefault(identity, []).append(name)
        for path in sorted((self._root / "imagedb/content/sha256").glob("*")):
            yield ImageRecord(path.name, tuple(names.get(f"sha256:{path.name}", ())), tuple(chain_ids(_diff_ids(path))))

    def containers(self) -> Iterator[ContainerRecord]:
        """Yield what has a writable layer: containers and build steps, by id."""
        names = container_names(self._root.parent.parent)
        for folder in sorted((self._root / "layerdb/mounts").glob("*")):
            if root := _text(folder / "mount-id"):
                yield ContainerRecord(folder.name, names.get(folder.name, ""), root, _text(folder / "init-id"))


def container_names(data_root: Path) -> dict[str, str]:
    """Return the names of a dockerd's containers by their ids, without the slash that dockerd writes before a name.

    `data_root` is dockerd's. What is no record of a container is left out.
    """
    names = {}
    for path in sorted((data_root / "containers").glob("*/config.v2.json")):
        with suppress(ValueError, AttributeError, TypeError, KeyError):
            if found := _CONTAINER_NAME.fullmatch(_json(path)["Name"]):
                names[path.parent.name] = found[1]
    return names


def default_data_root() -> Path:
    """Return dockerd's data root: that of $DMTHIN_DOCKER_ROOT, else of its configuration file, else its default."""
    if given := os.environ.get("DMTHIN_DOCKER_ROOT"):
        return Path(given)
    with suppress(ValueError, TypeError, KeyError):
        return Path(_json(_DAEMON_CONFIG)["data-root"])
    return _DATA_ROOT


def _diff_ids(config: Path) -> list[str]:
    """Return the digests of the tars of an image's layers, the lowest first; none for an invalid configuration."""
    try:
        return diff_ids(_json(config))
    except ValueError:
        return []


def _json(path: Path) -> Any:
    """Return the content of a JSON file. Raise ValueError if it has none."""
    try:
        return json.loads(_text(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def _text(path: Path) -> str:
    """Return the content of a small file, empty if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
