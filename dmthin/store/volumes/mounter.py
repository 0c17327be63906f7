"""Mounts of volumes' devices: their options, their folders, and the removal of these."""

import os
from contextlib import suppress
from pathlib import Path

from dmthin.errors import DmthinError, InUse, InvalidValue
from dmthin.kernel import detached, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.os_errors import os_failure
from dmthin.pool import filesystem
from dmthin.steps import step
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.model import Kind, NewVolume, Volume


class Mounter:
    """Mounts the devices of one store. The caller has the volume's lock and holds the device open."""

    def __init__(self, layout: Layout, options: StorageOptions) -> None:
        self._layout = layout
        self._options = options

    def mount(self, volume: Volume, info: DeviceInfo, target: Path, options: str = "") -> None:
        """Mount at a folder, which is made if need be; fine if the device is mounted there already.

        `options` come after those of the file system and of dm.mountopt. Raises InUse (another file system is mounted
        there), InvalidValue (not a folder), and what mount(2) gives.
        """
        if self.is_mounted(info, target):
            return
        made = self._make_folder(target)
        try:
            self._mount(volume, info, target, options)
        except DmthinError:
            if made:
                with suppress(OSError):
                    target.rmdir()
            raise

    def require_folder(self, target: Path) -> None:
        """Raise InvalidValue for a mount point that exists and is not a folder."""
        if target.exists() and not target.is_dir():
            raise InvalidValue(f"{target} is not a folder", hint="choose another one")

    def options(self, volume: Volume | NewVolume, target: Path, more: str = "") -> str:
        """Return the mount options of a volume at a place: those of its file system and dm.mountopt, then `more`."""
        work = "nosuid,nodev" if target.parent == self._layout.work else ""
        return self._join(volume, work, more)

    def is_mounted(self, info: DeviceInfo | None, target: Path) -> bool:
        """Return whether the device is mounted at a folder. Raises InUse if another file system is mounted there."""
        there = mount.at(target)
        if info is not None and any(entry.dev == info.dev for entry in there):
            return True
        if there:
            raise InUse(f"something else is mounted at {target}", hint="choose another folder")
        return False

    def mount_detached(self, volume: Volume, info: DeviceInfo) -> int:
        """Mount outside of every namespace; return a descriptor of the root (O_PATH). Closing it unmounts."""
        _, options = mount.split_options(self._join(volume))
        root = detached.mount(info.node, volume.file_system, options, read_only=volume.read_only)
        try:
            self._let_writes_fail(volume, info)
        except BaseException:
            os.close(root)
            raise
        return root

    def drop(self, volume: Volume) -> None:
        """Remove the folder at which a volume was mounted; mounts of it in other namespaces go with it."""
        place = self._layout.mount_point(volume.name)
        if volume.kind is not Kind.BASE and place.parent == self._layout.mounts:
            with step("remove", place), suppress(OSError):
                place.rmdir()

    def _make_folder(self, target: Path) -> bool:
        """Make the folder if it is not there; return whether it was made. Raises InvalidValue for another file."""
        made = not target.exists()
        self.require_folder(target)
        try:
            if target.parent == self._layout.work:
                self._layout.work.mkdir(mode=0o700, exist_ok=True)  # closed to others while a volume is filled
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise os_failure(error, f"make {target}") from None
        return made

    def _mount(self, volume: Volume, info: DeviceInfo, target: Path, more: str) -> None:
        mount.mount(info.node, target, volume.file_system, self.options(volume, target, more))
        try:
            self._let_writes_fail(volume, info)
        except BaseException:
            mount.unmount(target)
            raise

    def _join(self, volume: Volume | NewVolume, *more: str) -> str:
        kind = filesystem.by_name(volume.file_system)
        read_only = "ro" if volume.read_only else ""
        return filesystem.join_options(read_only, kind.mount_options, self._options.mount_options, *more)

    def _let_writes_fail(self, volume: Volume, info: DeviceInfo) -> None:
        """Carry dm.xfs_nospace_max_retries out."""
        if self._options.xfs_retries is not None:
            filesystem.by_name(volume.file_system).set_no_space_retries(info.node, self._options.xfs_retries)
