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
from dmthin.oci import chain_ids, diff_ids, is_digest
from dmthin.units import MIB

DEFAULT_ROOT = Path("/var/lib/containerd")
_BLOBS = Path("io.containerd.content.v1.content/blobs/sha256")
_LARGEST = 8 * MIB
"""Bytes of a JSON blob that is read: containerd's limit for what is no layer (remotes.MaxManifestSize is 4 MiB)."""


@dataclass(slots=True)
class LayerBlob:
    """A layer: its blob, compressed or not, the digest of its tar, and the manifests and indexes that lead to it."""

    path: Path
    diff: str
    images: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Document:
    """What is needed of an index (`manifests`), a manifest (`config`, `layers`) or a configuration (`diffs`)."""

    manifests: tuple[str, ...]
    config: str
    layers: tuple[str, ...]
    diffs: tuple[str, ...]


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
            for child in document.manifests:
                parents.setdefault(child, set()).add(digest)
        found: dict[str, LayerBlob] = {}
        for digest, manifest in documents.items():
            config = documents.get(manifest.config)
            if config is None or len(config.diffs) != len(manifest.layers):
                continue
            images = {digest, *parents.get(digest, ())}
            for chain, diff, layer in zip(chain_ids(config.diffs), config.diffs, manifest.layers, strict=True):
                path = self._folder / layer.partition(":")[2]
                if path.is_file():
                    found.setdefault(chain, LayerBlob(path, diff)).images |= images
        return found

    def _documents(self) -> Iterator[tuple[str, _Document]]:
        """Yield the blobs that are JSON objects of use, by digest."""
        for path in sorted(self._folder.iterdir()):
            try:
                with path.open("rb") as file:
                    if file.read(1) != b"{":
                        continue
                    content = json.loads(b"{" + file.read(_LARGEST))
            except (OSError, ValueError, RecursionError):
                continue
            document = _document(content)
            if any((document.manifests, document.layers, document.diffs)):
                yield f"sha256:{path.name}", document


def _document(content: dict[str, Any]) -> _Document:
    """Return what is needed of a blob; nothing of a part that is invalid."""
    config = content.get("config")
    layers = [layer for layer in _descriptors(content.get("layers")) if is_layer(str(layer.get("mediaType")))]
    return _Document(
        manifests=tuple(_digests(_descriptors(content.get("manifests")))),
        config=next(_digests(_descriptors([config])), ""),
        layers=tuple(_digests(layers)),
        diffs=tuple(diff_ids(content)),
    )


def _descriptors(found: Any) -> list[dict[str, Any]]:
    """Return the descriptors of a list, which may be anything."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _digests(descriptors: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the digests of descriptors, but for those that are none."""
    for descriptor in descriptors:
        digest = descriptor.get("digest")
        if isinstance(digest, str) and is_digest(digest):
            yield digest
