"""Media types of layers, and how each is compressed.

OCI image specification, media-types.md; Docker's image manifest version 2, schema 2. The other suffixes, such as
`+encrypted`, belong to stream processors of containerd.
"""

from dmthin.layers.digest import GZIP, ZSTD

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
DEFAULT = f"{OCI}+gzip"
"""What containerd takes where a client names none."""

_SUFFIXES = {"": "", "gzip": GZIP, "zstd": ZSTD}
_FOREIGN = {
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "+",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": ".",
}
"""Layers that registries need not have, with the character before the suffix."""

_WRITTEN = {OCI: "+", DOCKER: "."}


def compression_of(media_type: str) -> str | None:
    """Return the compression in which a layer of this media type is to be written; None if dmthin writes none such."""
    return _compression(media_type, _WRITTEN)


def is_layer(media_type: str) -> bool:
    """Return whether dmthin unpacks layers of this media type."""
    return _compression(media_type, _WRITTEN | _FOREIGN) is not None


def _compression(media_type: str, known: dict[str, str]) -> str | None:
    for name, separator in known.items():
        if media_type == name:
            return ""
        suffix = media_type.removeprefix(name + separator)
        if suffix != media_type:
            return _SUFFIXES.get(suffix) if suffix else None
    return None
