"""Rules of the OCI image specification that several front ends need."""

import hashlib
from collections.abc import Iterable, Iterator


def chain_ids(diff_ids: Iterable[str]) -> Iterator[str]:
    """Yield the chain ids of layers whose tars have these digests, the lowest first (config.md, "Layer ChainID")."""
    chain = ""
    for diff in diff_ids:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff}'.encode()).hexdigest()}" if chain else diff
        yield chain
