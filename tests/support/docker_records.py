"""dockerd's record of a container, as dockerd 28 writes it; no dockerd is needed for that."""

import json
from collections.abc import Mapping
from pathlib import Path


def record_of(root: Path, key: str) -> Path:
    """The record of the container whose snapshot has this key."""
    return root / "containers" / key.rpartition("/")[2] / "hostconfig.json"


def record_container(root: Path, key: str, options: Mapping[str, str] | None) -> Path:
    """Write a record with these storage options below a data root; returns it. None are null, as Go writes them."""
    record = record_of(root, key)
    record.parent.mkdir(parents=True, exist_ok=True)
    config = {"Binds": None, "NetworkMode": "none", "StorageOpt": options, "Memory": 0, "MaskedPaths": ["/proc/acpi"]}
    record.write_text(json.dumps(config) + "\n")
    return record
