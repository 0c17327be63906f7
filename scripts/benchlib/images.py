"""Images as archives that `docker load` and `ctr images import` take."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence


def archive_of(layers: Sequence[bytes], tag: str = "") -> tuple[bytes, str]:
    """An image of these layers' tars, the lowest first; and its id."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
    }
    text = json.dumps(config).encode()
    image = hashlib.sha256(text).hexdigest()
    names = [f"layer{number}.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{image}.json", "RepoTags": [tag] if tag else None, "Layers": names}]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (
            *zip(names, layers, strict=True),
            (f"{image}.json", text),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), f"sha256:{image}"


def chain_ids(layers: Sequence[bytes]) -> list[str]:
    """What containerd calls the committed snapshot of each layer (OCI image specification, layer ChainID)."""
    chain: list[str] = []
    for layer in layers:
        diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        below = f"{chain[-1]} " if chain else ""
        chain.append(f"sha256:{hashlib.sha256(f'{below}{diff}'.encode()).hexdigest()}" if chain else diff)
    return chain
