"""What dockerd calls the volumes of its store, by its own records."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dmthin.docker.records import ContainerRecord, DockerRecords, ImageRecord, container_names
from dmthin.store.owners import Owner

ENGINE = "dockerd"
_INIT = "-init"
_LAYER_NAME = re.compile(r"([0-9a-f]{64}|[0-9a-z]{25})(-init)?")
"""The names that dockerd and its BuildKit give to layers: stringid.GenerateRandomID, identity.NewID."""

_RANDOM_ID = re.compile(r"[0-9a-f]{64}(-init)?")
_UNRECORDED = Owner(ENGINE, "a layer of dockerd without a record", "let dockerd remove it")

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


def docker_owners(records: DockerRecords, volumes: Iterable[str]) -> dict[str, Owner]:
    """Return what dockerd calls its volumes, by their names. `volumes` are the names of all volumes of the store.

    A volume whose name is of dockerd's form belongs to it without a record too: it is being made, or of a build's
    cache, whose records are BuildKit's.
    """
    found = {name: _UNRECORDED for name in volumes if _LAYER_NAME.fullmatch(name)}
    found |= dict(_of_layers(records))
    for container in records.containers():
        found |= dict(_of_container(container))
    return found


def unrecorded_owners(volumes: Iterable[str]) -> dict[str, Owner]:
    """Return what is dockerd's among these volumes of a store beside which there are no records, by their names.

    The records may be lost, so names of 64 hexadecimal digits are dockerd's. BuildKit's of 25 characters are not: an
    administrator may have chosen such a name, in a store that was never dockerd's.
    """
    return {name: _UNRECORDED for name in volumes if _RANDOM_ID.fullmatch(name)}


def _of_layers(records: DockerRecords) -> Iterator[tuple[str, Owner]]:
    """Yield what dockerd calls the layers of images."""
    tops: dict[str, list[ImageRecord]] = {}
    users: dict[str, list[str]] = {}
    for image in records.image_records():
        for chain in image.chains:
            users.setdefault(chain, []).extend(image.names or (image.id[:12],))
        if image.chains:
            tops.setdefault(image.chains[-1], []).append(image)
    for layer in records.layers():
        yield layer.volume, _of_layer(layer.volume, layer.chain, tops.get(layer.chain, ()), users.get(layer.chain, ()))


def _of_layer(volume: str, chain: str, tops: Iterable[ImageRecord], users: Iterable[str]) -> Owner:
    """Return what dockerd calls one layer: `tops` are the images that end with it, `users` those that contain it."""
    tops, users = list(tops), sorted(users)
    if not users:
        return Owner(ENGINE, "a layer of dockerd's build cache", "use docker builder prune", ids=(volume,))
    remedy = f"use docker rmi {users[0]}"
    if not tops:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        what = f"a layer of dockerd's image {users[0]}{more}"
        return Owner(ENGINE, what, remedy, f"layer of {users[0]}{more}", chain, ids=(volume,))
    shown = sorted(name for image in tops for name in image.names or (image.id[:12],))
    return Owner(
        ENGINE,
        f"the top layer of dockerd's image {shown[0]}",
        remedy,
        name=", ".join(shown),
        id=f"sha256:{tops[0].id}",
        names=tuple(alias for name in shown for alias in (name, name.removesuffix(":latest"))),
        ids=(*(image.id for image in tops), volume),
    )


def _of_container(container: ContainerRecord) -> Iterator[tuple[str, Owner]]:
    """Yield what dockerd calls the two layers of a container or of a build step."""
    if not container.name and not _CONTAINER_ID.fullmatch(container.id):
        owner = Owner(ENGINE, "a layer that a build of dockerd's writes", "use docker builder prune", id=container.id)
        yield from ((volume, owner) for volume in (container.root, container.init) if volume)
        return
    yield container.root, of_container(container.id, container.name, container.root)
    if container.init:
        yield container.init, of_init_layer(container.id, container.name)


class ContainerKeys:
    """The containers of a dockerd by keys of containerd's: there the key is the id, with `-init` for the init layer.

    (daemon/containerd/image_snapshot.go in moby.) dockerd's records are read when the first key is asked for.
    """

    def __init__(self, data_root: Path) -> None:
        self._data_root = data_root
        self._names: dict[str, str] | None = None

    def __call__(self, key: str) -> Owner | None:
        """Return what dockerd calls the snapshot with that key, None if it is of no container."""
        identity = key.removesuffix(_INIT)
        if _CONTAINER_ID.fullmatch(identity) is None:
            return None
        if self._names is None:
            self._names = container_names(self._data_root)
        name = self._names.get(identity, "")
        return of_container(identity, name) if identity == key else of_init_layer(identity, name)


def of_container(identity: str, name: str, volume: str = "") -> Owner:
    """Return what dockerd calls the root of a container with that id, whose name may be unknown (empty)."""
    return Owner(
        ENGINE,
        f"the root of dockerd's container {_quoted(identity, name)}",
        f"use docker rm {name or identity[:12]}",
        name=name,
        id=identity,
        names=(name,) if name else (),
        ids=tuple(filter(None, (identity, volume))),
    )


def of_init_layer(identity: str, name: str) -> Owner:
    """Return what dockerd calls the layer between a container and its image. Only its own name means it."""
    what = f"the init layer of dockerd's container {_quoted(identity, name)}"
    return Owner(ENGINE, what, f"use docker rm {name or identity[:12]}", f"{name} (init)" if name else "", identity)


def _quoted(identity: str, name: str) -> str:
    return f'"{name}"' if name else identity[:12]
