"""Rules of the OCI image specification that several front ends need. Configurations come from strangers."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_LAYERS = 1024
"""Far more than any engine stacks: overlay2 stops at 128."""


def is_digest(text: object) -> bool:
    """Return whether something is a SHA-256 digest in the form of the specification (descriptor.md, "Digests")."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def diff_ids(config: Any) -> list[str]:
    """Return the digests of the tars of an image's layers, the lowest first, from its configuration (config.md).

    There are none in one that is invalid, or has more than 1024.
    """
    try:
        found = config["rootfs"]["diff_ids"]
    except (TypeError, KeyError):
        return []
    if not isinstance(found, list) or len(found) > _MOST_LAYERS or not all(map(is_digest, found)):
        return []
    return found


def chain_ids(diff_ids: Iterable[str]) -> Iterator[str]:
    """Yield the chain ids of layers whose tars have these digests, the lowest first (config.md, "Layer ChainID")."""
    chain = ""
    for diff in diff_ids:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff}'.encode()).hexdigest()}" if chain else diff
        yield chain
