"""What containerd and its clients call the snapshots of a store, by their keys and labels in the ledger."""

import re
from collections.abc import Callable, Iterable

from dmthin.containerd import keys
from dmthin.containerd.snapshotter import REFERENCE
from dmthin.store.owners import Owner, short
from dmthin.store.state.model import Snapshot, SnapshotKind

ENGINE = "containerd"

IMAGE_REFERENCE = "containerd.io/snapshot/cri.image-ref"
"""The label with an image's name, of each of its layers (containerd's pkg/snapshotters/annotations.go)."""

OfDocker = Callable[[str], Owner | None]
"""Returns what dockerd calls the snapshot of one of its containers, by its key; None for another snapshot."""

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_CLIENTS = {keys.DOCKER_NAMESPACE: "docker", "k8s.io": "crictl", "buildkit": "buildctl"}


def containerd_owners(snapshots: Iterable[Snapshot], of_docker: OfDocker) -> dict[str, Owner]:
    """Return what containerd calls the volumes of its snapshots, by their names."""
    known = list(snapshots)
    children: dict[tuple[str, str], list[Snapshot]] = {}
    for one in known:
        children.setdefault((one.snapshotter, one.parent), []).append(one)
    return {one.volume.name: _owner(one, children.get((one.snapshotter, one.key), []), of_docker) for one in known}


def _owner(snapshot: Snapshot, children: list[Snapshot], of_docker: OfDocker) -> Owner:
    """Return what containerd calls a snapshot that has these children."""
    namespace, key = keys.parse(snapshot.key)
    if namespace == keys.DOCKER_NAMESPACE and (made := of_docker(key)):
        return made
    # A layer that dmthin has published by itself has a key of its own, and its chain id in the label.
    known = snapshot.labels.get(REFERENCE, key) if snapshot.kind is SnapshotKind.COMMITTED else key
    found = _ID.fullmatch(known)
    of_namespace = f" of namespace {namespace}" if namespace else ""
    client = _CLIENTS.get(namespace, f"ctr -n {namespace}" if namespace else "containerd's client")
    remedy, identity, ids = f"remove it with {client}", known if found else "", (found[1],) if found else ()
    if snapshot.kind is not SnapshotKind.COMMITTED:
        what = f'containerd\'s {snapshot.kind} snapshot "{key}"{of_namespace}'
        return Owner(ENGINE, what, remedy, key, identity, (key,), ids)
    image = snapshot.labels.get(IMAGE_REFERENCE, "")
    if not image:
        users = sorted(user for child in children if (user := _user(child, of_docker)))
        shown = f"image of {', '.join(users)}" if users else identity or key
        what = f"containerd's layer {short(identity or key)}{of_namespace}"
        return Owner(ENGINE, what, remedy, shown, identity, (key,), ids)
    if any(child.labels.get(IMAGE_REFERENCE) == image for child in children):
        what = f"a layer of containerd's image {image}{of_namespace}"
        return Owner(ENGINE, what, remedy, f"layer of {image}", identity, (key,), ids)
    what = f"the top layer of containerd's image {image}{of_namespace}"
    return Owner(ENGINE, what, remedy, image, identity, (image, key), ids)


def _user(snapshot: Snapshot, of_docker: OfDocker) -> str:
    """Return the name of the container whose root or init layer a snapshot is, empty if it is none."""
    namespace, key = keys.parse(snapshot.key)
    if namespace == keys.DOCKER_NAMESPACE and (made := of_docker(key)):
        root = of_docker(made.id) or made
        return root.name or root.id[:12]
    return short(key) if snapshot.kind is SnapshotKind.ACTIVE else ""
