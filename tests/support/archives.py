"""Images as files that containerd imports: an OCI layout, or what `docker save` writes."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence

from enginelib.daemons import tar_of

_OCI = "application/vnd.oci.image"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_ids(layers: Sequence[bytes]) -> list[str]:
    """The names by which containerd knows layers (tars, not compressed), each with all that is below it."""
    return chain_of([digest(layer) for layer in layers])


def chain_of(diff_ids: Sequence[str]) -> list[str]:
    """The chain ids of layers whose tars have these digests, the lowest first."""
    chain = [diff_ids[0]]
    for diff_id in diff_ids[1:]:
        chain.append(digest(f"{chain[-1]} {diff_id}".encode()))
    return chain


def oci_archive(name: str, layers: Sequence[bytes]) -> bytes:
    """A tar of an OCI layout with one image; its layers are compressed, but for the first."""
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, data: bytes) -> dict[str, object]:
        blobs[f"blobs/{digest(data).replace(':', '/')}"] = data
        return {"mediaType": f"{_OCI}.{media_type}", "digest": digest(data), "size": len(data)}

    described = [blob("layer.v1.tar", layers[0])]
    described += [blob("layer.v1.tar+gzip", gzip.compress(layer, mtime=0)) for layer in layers[1:]]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": blob("config.v1+json", _config(name, layers)),
        "layers": described,
    }
    entry = {**blob("manifest.v1+json", _json(manifest)), "annotations": {"io.containerd.image.name": name}}
    layout = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    return tar_of({**layout, **blobs, "index.json": _json({"schemaVersion": 2, "manifests": [entry]})})


def docker_archive(name: str, layers: Sequence[bytes]) -> bytes:
    """What `docker save` writes for an image."""
    return docker_archive_of({name: layers})


def docker_archive_of(images: Mapping[str, Sequence[bytes]]) -> bytes:
    """What `docker save` writes for several images."""
    files: dict[str, bytes] = {}
    manifest = []
    for name, layers in images.items():
        paths = {f"{digest(layer).partition(':')[2]}/layer.tar": layer for layer in layers}
        config = _config(name, layers)
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        files |= {**paths, config_name: config}
        order = [f"{digest(layer).partition(':')[2]}/layer.tar" for layer in layers]
        manifest.append({"Config": config_name, "RepoTags": [name], "Layers": order})
    return tar_of({**files, "manifest.json": _json(manifest)})


def _config(name: str, layers: Sequence[bytes]) -> bytes:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["true"], "Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    return _json(config)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
