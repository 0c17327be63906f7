"""Verification of dockerd's layers: each is compared with the tar that dockerd loaded, pulled or committed."""

from collections.abc import Iterator
from functools import partial

from dmthin.docker.records import DockerRecords, LayerRecord
from dmthin.errors import NotFound
from dmthin.layers.job import Verb
from dmthin.layers.verifying import VerifiedLayer, find_problems, verified
from dmthin.store.store import Store


def verify_layers(store: Store, names: frozenset[str] = frozenset()) -> Iterator[VerifiedLayer]:
    """Verify the layers of the images with these names, of all images without any; yield each when it is done.

    Raise NotFound for a store that is not a dockerd's, or a name of no image; and what mounting a layer raises.
    """
    records = DockerRecords(store.layout.root)
    images = records.images()
    known = {name for names_of_one in images.values() for name in names_of_one}
    wanted = {name if ":" in name or name in known else f"{name}:latest" for name in names}
    if unknown := sorted(wanted - known):
        raise NotFound(f"dockerd has no image {unknown[0]}", hint="run: docker images")
    for layer in records.layers():
        users = tuple(sorted(images.get(layer.chain, ())))
        if not wanted or wanted.intersection(users):
            found = verified(layer.chain, layer.volume, users, partial(_problems, store, layer))
            if not found.unchecked or store.ledger.find(layer.volume):  # otherwise it has been removed meanwhile
                yield found


def _problems(store: Store, layer: LayerRecord) -> tuple[str, ...]:
    """Return what is wrong with a layer, a sentence for each."""
    if store.ledger.find(layer.volume) is None:
        return ("its volume is missing",)
    if not layer.tar_split.is_file():
        return ("dockerd's record of its tar is missing",)
    with store.layers.opened(layer.volume) as root:
        name = f"layer {layer.chain[7:19]}"
        return find_problems(Verb.VERIFY_RECORD, root, name, layer.tar_split, layer.diff)
