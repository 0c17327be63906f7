"""Containers: writable snapshots of images, mounted where their users want them."""

from pathlib import Path

from dmthin.errors import InvalidValue
from dmthin.store.config.layout import Layout
from dmthin.store.layers import Layers
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, Volume, check_name
from dmthin.store.volumes.volumes import Volumes


class Containers:
    """The containers of one store."""

    def __init__(self, layout: Layout, ledger: Ledger, volumes: Volumes, layers: Layers) -> None:
        self._layout = layout
        self._ledger = ledger
        self._volumes = volumes
        self._layers = layers

    def create(self, image: str, name: str, *, size: int | None = None) -> Volume:
        """Make a container of an image, its block device ready. `size` in bytes may be more than the image's.

        Raises AlreadyExists, NotFound, InvalidValue (a size below the image's), NoDataSpace.
        """
        check_name(name, Kind.CONTAINER)
        parent = self._ledger.ready(image, Kind.IMAGE)
        return self._layers.create(name, Kind.CONTAINER, parent, size, activate=True).volume

    def mount(self, name: str, target: Path | None = None) -> Path:
        """Mount a container, by default below the store, and return where. Fine if it is mounted there already.

        Raises InvalidValue for a name that only an engine gives, without a target: such a name is no path.
        """
        container = self._get(name)
        if target is None and "/" in name:
            raise InvalidValue(f"the container {name!r} has no place of its own", hint="name a folder to mount it at")
        place = target.absolute().resolve() if target else self._layout.mount_point(name)
        return self._volumes.mount(container, place)

    def unmount(self, name: str, *, force: bool = False) -> bool:
        """Unmount a container wherever it is mounted; False if it was not. Raises InUse, which names the holders."""
        return self._volumes.unmount(self._get(name), force=force)

    def resize(self, name: str, size: int) -> Volume:
        """Grow a container and its file system, in use or not. Raises InvalidValue for less than it has."""
        return self._volumes.grow(self._get(name), size)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a container. Raises InUse for one that is mounted; `force` detaches it lazily and defers the rest."""
        self._volumes.remove(self._get(name), force=force)

    def _get(self, name: str) -> Volume:
        return self._ledger.ready(name, Kind.CONTAINER)
