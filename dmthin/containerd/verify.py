"""Verification of containerd's layers: each committed snapshot is compared with the blob that it was unpacked from."""

from collections.abc import Iterator
from pathlib import Path

from dmthin.containerd.blobs import Blobs, LayerBlob
from dmthin.containerd.snapshotter import REFERENCE
from dmthin.errors import InvalidValue, NotFound
from dmthin.layers.job import Verb
from dmthin.layers.verifying import VerifiedLayer, find_problems, verified
from dmthin.store.state.model import Snapshot
from dmthin.store.store import Store

_DIGEST = "sha256:"


def verify_snapshots(store: Store, root: Path, names: frozenset[str] = frozenset()) -> Iterator[VerifiedLayer]:
    """Verify the layers of the images with these digests, of all images without any; yield each when it is done.

    `root` is containerd's root, with its blobs. A digest may be cut to a unique beginning, with or without `sha256:`.
    Snapshots whose names are no chain ids, which clients make for themselves, are left out. Raise NotFound (no blobs, a
    digest of no image) and InvalidValue (a beginning of several digests).
    """
    layers = Blobs(root).layers()
    known = {image for layer in layers.values() for image in layer.images}
    wanted = {_complete(name, known) for name in names}
    for snapshot in store.snapshots.committed():
        chain = _chain(snapshot)
        layer = layers.get(chain)
        images = layer.images if layer else set()
        if chain and (not wanted or wanted & images):
            found = _verified(store, snapshot, chain, layer)
            if not found.unchecked or store.ledger.find(snapshot.volume.name):  # otherwise removed meanwhile
                yield found


def _verified(store: Store, snapshot: Snapshot, chain: str, layer: LayerBlob | None) -> VerifiedLayer:
    """Compare a snapshot with its blob."""
    volume = snapshot.volume.name
    if layer is None:
        return VerifiedLayer(chain, volume, (), (), "its blob is not among containerd's")

    def problems() -> tuple[str, ...]:
        with store.snapshots.frozen(snapshot) as root:
            return find_problems(Verb.VERIFY, root, f"layer {chain[7:19]}", layer.path, layer.diff)

    return verified(chain, volume, tuple(sorted(layer.images)), problems)


def _chain(snapshot: Snapshot) -> str:
    """Return the chain id of a committed snapshot, empty if it has none: its label, or the last part of its name."""
    found = snapshot.labels.get(REFERENCE) or snapshot.key.rpartition("/")[2]
    return found if found.startswith(_DIGEST) else ""


def _complete(name: str, known: set[str]) -> str:
    """Return the digest of an image that begins with `name`. Raise NotFound, InvalidValue if there are several."""
    start = _DIGEST + name.removeprefix(_DIGEST)
    found = sorted(digest for digest in known if digest.startswith(start))
    if not found:
        raise NotFound(f"containerd has no image whose digest begins with {name}", hint="run: ctr images ls")
    if len(found) > 1:
        raise InvalidValue(
            f"containerd has {len(found)} images whose digests begin with {name}", hint="write more of the digest"
        )
    return found[0]
