"""Images: imported from an archive or a folder, or committed from a container."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dmthin.errors import NoDataSpace
from dmthin.kernel import block
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.model import Kind, NewVolume, State, Volume, check_name
from dmthin.store.volumes.bases import Bases
from dmthin.store.volumes.volumes import Volumes
from dmthin.units import format_exact

if TYPE_CHECKING:
    from dmthin.layers.unpack import Progress


class Images:
    """The images of one store."""

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
        """Make an image of a tar (plain, gz, xz, zst; `-` is standard input) or of a folder.

        `size` in bytes is the image's, by default dm.basesize. A failure or an interruption leaves no image.
        Raises AlreadyExists, InvalidValue (the archive), NoDataSpace (larger than the volume or the pool).
        """
        from dmthin.layers.source import open_source  # the decompressors cost 20 ms, which only an import need pay
        from dmthin.layers.unpack import unpack

        check_name(name, Kind.IMAGE)
        self._ledger.require_free(name)
        size = size or self._options.base_size
        with open_source(source) as entries, ExitStack() as stack:
            with self._bases.kept():
                base = self._bases.ensure(self._options.file_system, size, self._options.mkfs_arguments)
                new = NewVolume(name, Kind.IMAGE, size, base.file_system, base)
                image = stack.enter_context(self._volumes.making(new, activate=True))
            root = stack.enter_context(self._volumes.mounted_for_work(image))
            try:
                unpack(entries, root, progress=progress)
                block.sync_file_system(root)
            except NoDataSpace as error:
                raise NoDataSpace(
                    f"{entries.name} does not fit into an image of {format_exact(size)}: {error.message}",
                    hint="give a larger --storage-opt size=, or see dmthin pool status",
                ) from None
        return image.with_state(State.READY)

    def commit(self, container: str, name: str) -> Volume:
        """Make an image of what a container holds now; it may be mounted and in use. The container goes on."""
        check_name(name, Kind.IMAGE)
        source = self._ledger.ready(container, Kind.CONTAINER)
        with self._volumes.locked(source) as source:
            self._volumes.write_out(source)  # before anybody waits for us: on a full pool this waits for space
            parent = None if source.parent is None else self._ledger.by_id(source.parent)
            new = NewVolume(name, Kind.IMAGE, source.size, source.file_system, parent)
            return self._volumes.make(new, origin=source).volume

    def remove(self, name: str) -> None:
        """Remove an image, and its base if nothing else is made of that. Raises NotFound, InUse (it has children)."""
        self._volumes.remove(self._ledger.ready(name, Kind.IMAGE))
        self._bases.remove_unused()
