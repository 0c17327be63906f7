"""Images: imported from an archive or a folder, or committed from a container."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmthin.errors import NoDataSpace
from dmthin.kernel import block
from dmthin.pool.filesystem import FileSystem
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, NewVolume, State, Volume, check_name
from dmthin.store.volumes.bases import Bases, new_base
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

if TYPE_CHECKING:
    from dmthin.layers.unpack import Progress


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """An image that can be imported: `name`, `size` in bytes, and the base that it is made from.

    `base` is None if `new_base` is still to be made, with these arguments for mkfs.
    """

    name: str
    size: int
    file_system: FileSystem
    mkfs_arguments: tuple[str, ...]
    new_base: NewVolume
    base: Volume | None


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """An image that can be made of what `origin` holds."""

    new: NewVolume
    origin: Volume


class Images:
    """The images of one store. Each `plan_` method checks what its verb does, and changes nothing."""

    def __init__(self, ledger: Ledger, volumes: Volumes, bases: Bases, options: StorageOptions) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._bases = bases
        self._options = options

    def import_(
        self,
        name: str,
        source: Path | str,
        *,
        size: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Volume:
        """Make an image of a tar (plain, gz, bz2, xz, zst; `-` is standard input) or of a folder; return it.

        `size` in bytes is the image's, by default dm.basesize. A failure or an interruption leaves no image.
        Raises AlreadyExists, NotFound (the source), InvalidValue (the name, the size, the archive), NoDataSpace (it
        does not fit into the volume or the pool).
        """
        from dmthin.layers.source import open_source  # the decompressors cost 20 ms at start, which only imports pay
        from dmthin.layers.unpack import unpack

        plan = self.plan_import(name, size)
        with open_source(source) as entries, ExitStack() as stack:
            with self._bases.lock():
                base = self._bases.ensure(plan.file_system, plan.size, plan.mkfs_arguments)
                new = NewVolume(name, Kind.IMAGE, plan.size, base.file_system, base)
                image = stack.enter_context(self._volumes.creation.making(new, activate=True))
            root = stack.enter_context(self._volumes.mounts.mounted(image))
            try:
                unpack(entries, root, progress=progress)
                block.sync_file_system(root)
            except NoDataSpace as error:
                raise does_not_fit(entries.name, plan.size, error.message) from None
        return image.with_state(State.READY)

    def plan_import(self, name: str, size: int | None = None) -> ImportPlan:
        """Return the image that `import_` makes. Raises AlreadyExists, InvalidValue (the name, the size)."""
        check_name(name, Kind.IMAGE)
        self._ledger.require_available(name)
        size = size or self._options.base_size
        kind, arguments = self._options.file_system, self._options.mkfs_arguments
        base = new_base(kind, size, arguments)
        return ImportPlan(name, base.size, kind, arguments, base, self._bases.find(base))

    def check_source(self, plan: ImportPlan, source: Path | str) -> None:
        """Read a source to its end, and check that its files fit. Standard input is checked, but not read.

        Raises NotFound, InvalidValue (not an archive, a terminal as input), NoDataSpace. What only unpacking can tell,
        such as a name that leads through a file, is found by the import itself.
        """
        from dmthin.layers.source import STDIN, measure_source, open_source

        if source == STDIN:
            with open_source(source):
                return
        measured = measure_source(source)
        if measured.bytes > plan.size:
            raise does_not_fit(measured.name, plan.size, f"it holds {format_exact(measured.bytes)} in files")

    def commit(self, container: str, name: str) -> Volume:
        """Make an image of what a container holds now, mounted and in use or not; return it. The container goes on.

        Raises AlreadyExists, NotFound, InvalidValue (the name), NoDataSpace, NoMetadataSpace.
        """
        source = self.plan_commit(container, name).origin
        with self._volumes.locks.locked(source) as source:
            # Before the suspend lock and the pool lock are taken: on a full pool this waits for space.
            self._volumes.write_out(source)
            return self._volumes.creation.make(self._committed(source, name), origin=source).volume

    def plan_commit(self, container: str, name: str) -> CommitPlan:
        """Return the image that `commit` makes. Raises what it does, except for want of space."""
        check_name(name, Kind.IMAGE)
        source = self._ledger.ready(container, Kind.CONTAINER)
        self._ledger.require_available(name)
        return CommitPlan(self._committed(source, name), source)

    def remove(self, name: str) -> None:
        """Remove an image, and its base if that has no other children. Raises NotFound, InUse (it has children)."""
        self._volumes.removal.remove(self._ledger.ready(name, Kind.IMAGE))
        self._bases.remove_unused()

    def plan_remove(self, name: str) -> list[Volume]:
        """Return what `remove` removes: the image, and bases that have no other children. Raises what it does."""
        image = self._volumes.removal.plan(self._ledger.ready(name, Kind.IMAGE))
        return [image, *self._bases.unused(without=image)]

    def _committed(self, source: Volume, name: str) -> NewVolume:
        parent = None if source.parent is None else self._ledger.by_id(source.parent)
        return NewVolume(name, Kind.IMAGE, source.size, source.file_system, parent)


def does_not_fit(source: str, size: int, reason: str) -> NoDataSpace:
    """Return the error for a source that is too large for an image of `size` bytes."""
    return NoDataSpace(
        f"{source} does not fit into an image of {format_exact(size)}: {reason}",
        hint="give a larger --storage-opt size=, or see dmthin pool status",
    )
