"""The engines that have volumes of a store: their names for volumes, and the protection of what is theirs."""

from typing import TYPE_CHECKING

from dmthin.store.owners import Owners

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmthin.store.state.model import Kind
    from dmthin.store.store import Store


def owners_of(store: "Store") -> Owners:
    """Return what dockerd and containerd call the volumes of a store, by dockerd's records and the ledger."""
    from dmthin.containerd.owners import containerd_owners
    from dmthin.docker.owners import ContainerKeys, docker_owners, unrecorded_owners
    from dmthin.docker.records import DockerRecords, default_data_root
    from dmthin.errors import NotFound

    names = [volume.name for volume in store.ledger.volumes()]
    try:
        found = docker_owners(DockerRecords(store.layout.root), names)
    except NotFound:
        found = unrecorded_owners(names)
    return Owners(found | containerd_owners(store.snapshots.every(), ContainerKeys(default_data_root())))


def meant(store: "Store", text: str, *kinds: "Kind") -> str:
    """Return the name of the volume that a user means by its name, an engine's name or id, or the beginning of an id.

    Return `text` itself if there is none. Raise InvalidValue if it may be several volumes.
    """
    if store.ledger.find(text) is not None:
        return text
    return owners_of(store).meant(text, store.ledger.volumes(), *kinds)


def all_meant(store: "Store", texts: "Iterable[str]") -> tuple[list[str], Owners]:
    """Return the names of the volumes that a user means, each as by `meant`, and the owners of the store's volumes."""
    owners, volumes = owners_of(store), store.ledger.volumes()
    known = {volume.name for volume in volumes}
    return [text if text in known else owners.meant(text, volumes) for text in texts], owners


def meant_to_remove(store: "Store", text: str, kind: "Kind", *, force: bool) -> str:
    """Return the name of the volume that a user means to remove, as `meant` does.

    Raise InUse, which says whose it is, if an engine has it, unless forced. Forced, a short beginning of an id means
    nothing: a script that repeats `rm db --force` must not remove an engine's volume whose id begins so. Raise NotFound
    for one.
    """
    own = store.ledger.find(text) is not None
    if own and force:
        return text
    owners = owners_of(store)
    name = text if own else owners.meant(text, store.ledger.volumes(), kind, whole=force)
    if not force:
        owners.require_none(name)
    return name
