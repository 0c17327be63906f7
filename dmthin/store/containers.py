"""Containers: writable snapshots of images, mounted where their users want them."""

import os
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import InvalidValue
from dmthin.store.config.layout import Layout
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, NewVolume, Volume, check_name
from dmthin.store.volumes.children import Children, plan_child
from dmthin.store.volumes.volumes import Volumes


@dataclass(frozen=True, slots=True)
class MountPlan:
    """A container that can be mounted at `place`, where it is already if `is_mounted`."""

    container: Volume
    place: Path
    is_mounted: bool


class Containers:
    """The containers of one store. Each `plan_` method checks what its verb does, and changes nothing."""

    def __init__(self, layout: Layout, ledger: Ledger, volumes: Volumes, children: Children) -> None:
        self._layout = layout
        self._ledger = ledger
        self._volumes = volumes
        self._children = children

    def create(self, image: str, name: str, *, size: int | None = None) -> Volume:
        """Make a container of an image, its block device active; return it. `size` in bytes may exceed the image's.

        Raises AlreadyExists, NotFound, InvalidValue (the name; a size below the image's), NoDataSpace, NoMetadataSpace.
        """
        return self._children.create(self.plan_create(image, name, size), activate=True).volume

    def plan_create(self, image: str, name: str, size: int | None = None) -> NewVolume:
        """Return the container that `create` makes. Raises what it does, except for want of space."""
        check_name(name, Kind.CONTAINER)
        parent = self._ledger.ready(image, Kind.IMAGE)
        new = plan_child(name, Kind.CONTAINER, parent, size)
        self._ledger.require_available(name)
        return new

    def mount(self, name: str, target: Path | None = None) -> Path:
        """Mount a container, by default below the store; return where. Fine if it is mounted there already.

        Raises NotFound, InUse (open elsewhere, or another file system is mounted there), and InvalidValue without a
        target for a name that only an engine gives: such a name is not a path.
        """
        container, place = self._place(name, target)
        return self._volumes.mount(container, place)

    def plan_mount(self, name: str, target: Path | None = None) -> MountPlan:
        """Return the mount that `mount` makes. Raises what it does."""
        container, place = self._place(name, target)
        return MountPlan(container, place, self._volumes.plan_mount(container, place))

    def unmount(self, name: str, *, force: bool = False) -> bool:
        """Unmount a container wherever it is mounted; False if it was not. Raises NotFound, InUse (names the users)."""
        return self._volumes.unmount(self.get(name), force=force)

    def resize(self, name: str, size: int) -> Volume:
        """Grow a container and its file system to `size` bytes, in use or not; return it. Raises as `Volumes.grow`."""
        return self._volumes.grow(self.get(name), size)

    def plan_resize(self, name: str, size: int) -> Volume:
        """Return the container as `resize` makes it. Raises NotFound, InvalidValue, InUse (open elsewhere)."""
        return self._volumes.plan_growth(self.get(name), size)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a container. Raises NotFound, InUse for one that is mounted or open.

        With `force`, mounts are detached lazily, and the last user's end removes the rest.
        """
        self._volumes.removal.remove(self.get(name), force=force)

    def plan_remove(self, name: str) -> Volume:
        """Return the container that `remove` removes without `force`. Raises what it does."""
        return self._volumes.removal.plan(self.get(name))

    def get(self, name: str) -> Volume:
        """Return a container. Raises NotFound."""
        return self._ledger.ready(name, Kind.CONTAINER)

    def _place(self, name: str, target: Path | None) -> tuple[Volume, Path]:
        """Return a container and where to mount it. Raises NotFound, InvalidValue (a name that is not a path)."""
        container = self.get(name)
        if target is None and "/" in name:
            raise InvalidValue(f"the container {name!r} has no place of its own", hint="name a folder to mount it at")
        return container, Path(os.path.realpath(target)) if target else self._layout.mount_point(name)
