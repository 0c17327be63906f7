"""The blobs of containerd's content store, read as files: which layer of which image each chain id is.

`ROOT/io.containerd.content.v1.content/blobs/sha256/HEX` is a blob (plugins/content/local/store.go in containerd). An
index lists manifests; a manifest lists a configuration and layers (OCI image specification; Docker's image manifest
version 2, schema 2). The names of images are in containerd's own database, which is not read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmthin.containerd.media_types import is_layer
from dmthin.errors import NotFound
from dmthin.oci import chain_ids
from dmthin.units import MIB

DEFAULT_ROOT = Path("/var/lib/containerd")
_BLOBS = Path("io.containerd.content.v1.content/blobs/sha256")
_LARGEST = 8 * MIB
"""Bytes of a JSON blob that is read: containerd's limit for what is no layer (remotes.MaxManifestSize is 4 MiB)."""


@dataclass(slots=True)
class LayerBlob:
    """A layer: its blob, compressed or not, and the digests of the manifests and indexes that lead to it."""

    path: Path
    images: set[str] = field(default_factory=set)


class Blobs:
    """The blobs of one containerd, by its root. Raise NotFound if there are none."""

    def __init__(self, root: Path) -> None:
        self._folder = root / _BLOBS
        if not self._folder.is_dir():
            raise NotFound(f"there are no blobs of containerd in {root}", hint="pass its root: --containerd-root DIR")

    def layers(self) -> dict[str, LayerBlob]:
        """Return the layers of all images whose blobs are there, by chain id. Invalid JSON is ignored."""
        documents = dict(self._documents())
        parents: dict[str, set[str]] = {}
        for digest, document in documents.items():
            for child in _digests(document.get("manifests")):
                parents.setdefault(child, set()).add(digest)
        found: dict[str, LayerBlob] = {}
        for digest, manifest in documents.items():
            images = {digest, *parents.get(digest, ())}
            for chain, layer in _layers(manifest, documents):
                path = self._path(layer)
                if path is not None and path.is_file():
                    found.setdefault(chain, LayerBlob(path)).images |= images
        return found

    def _documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the blobs that are JSON objects, by digest."""
        for path in sorted(self._folder.iterdir()):
            try:
                with path.open("rb") as file:
                    if file.read(1) != b"{":
                        continue
                    document = json.loads(b"{" + file.read(_LARGEST))
            except (OSError, ValueError, RecursionError):
                continue
            yield f"sha256:{path.name}", document

    def _path(self, digest: str) -> Path | None:
        """Return where a blob is, None for a digest that is none."""
        algorithm, _, name = digest.partition(":")
        return self._folder / name if algorithm == "sha256" and name.isalnum() else None


def _layers(manifest: dict[str, Any], documents: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield chain id and digest of each layer of a manifest whose configuration is there."""
    try:
        layers = [str(layer["digest"]) for layer in manifest["layers"] if is_layer(str(layer["mediaType"]))]
        diffs = [str(diff) for diff in documents[manifest["config"]["digest"]]["rootfs"]["diff_ids"]]
    except (KeyError, TypeError):
        return
    if len(layers) == len(diffs):
        yield from zip(chain_ids(diffs), layers, strict=True)


def _digests(descriptors: Any) -> Iterator[str]:
    """Yield the digests of a list of descriptors, which may be anything."""
    for descriptor in descriptors if isinstance(descriptors, list) else ():
        if isinstance(descriptor, dict):
            yield str(descriptor.get("digest"))
