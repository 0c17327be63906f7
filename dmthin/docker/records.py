"""dockerd's own records of images and containers, beside the store: which layer belongs to which image.

Of the layer store (layer/filestore.go in moby): `image/DRIVER/layerdb/sha256/CHAIN/` has `cache-id` (the name of the
layer), `diff` (the digest of its tar), `parent` and `tar-split.json.gz`. Of its image store: `repositories.json`, and
`imagedb/content/sha256/ID` with the configuration of each image.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmthin.errors import NotFound
from dmthin.oci import chain_ids
from dmthin.units import MIB

_LARGEST = 16 * MIB
"""Bytes of a record that is read as a whole."""


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer: its chain id, its volume, the digest of its tar, and where dockerd keeps the tar without contents."""

    chain: str
    volume: str
    diff: str
    tar_split: Path


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
        names: dict[str, list[str]] = {}
        with suppress(ValueError, AttributeError, TypeError):
            for references in json.loads(_text(self._root / "repositories.json") or "{}")["Repositories"].values():
                for name, identity in references.items():
                    if "@" not in name:
                        names.setdefault(identity, []).append(name)
        found: dict[str, list[str]] = {}
        for path in sorted((self._root / "imagedb/content/sha256").glob("*")):
            for chain in chain_ids(_diff_ids(path)):
                found.setdefault(chain, []).extend(names.get(f"sha256:{path.name}", [path.name[:12]]))
        return found


def _diff_ids(config: Path) -> list[str]:
    """Return the digests of the tars of an image's layers, the lowest first; none for an invalid configuration."""
    try:
        content: Any = json.loads(_text(config))
        return [str(diff) for diff in content["rootfs"]["diff_ids"]]
    except (ValueError, TypeError, KeyError):
        return []


def _text(path: Path) -> str:
    """Return the content of a small file, empty if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
