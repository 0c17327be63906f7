"""Mounts of volumes for dmthin's own work, and the growth of the file systems on them.

Everything here takes the pool from the gate, without recovering other volumes: recovery itself uses it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dmthin.errors import DmthinError, InvalidValue, PartlyDone
from dmthin.kernel import mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool import filesystem
from dmthin.store.config.layout import Layout
from dmthin.store.lifecycle.gate import Gate
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.lock_waits import unlimited
from dmthin.store.state.model import State, Volume
from dmthin.store.volumes import busy
from dmthin.store.volumes.devices import Devices, OpenDevice
from dmthin.store.volumes.mounter import Mounter
from dmthin.units import format_exact, volume_size

logger = logging.getLogger(__name__)


class WorkMounts:
    """Mounts volumes of one store at places of its own. The caller holds the volume's lock."""

    def __init__(self, layout: Layout, ledger: Ledger, gate: Gate, devices: Devices, mounter: Mounter) -> None:
        self._layout = layout
        self._ledger = ledger
        self._gate = gate
        self._devices = devices
        self._mounter = mounter

    def activate(self, volume: Volume) -> DeviceInfo:
        """Create the block device of a volume, or complete the one that is there."""
        with self._gate.hold() as pool:
            return self._devices.activate(pool, volume)

    def deactivate(self, volume: Volume) -> bool:
        """Remove a volume's device: False if its last user's end does that, as dm.use_deferred_removal allows.

        Raises InUse where that is not allowed.
        """
        with self._gate.hold() as pool:
            return self._devices.deactivate(pool, volume)

    def open_device(self, volume: Volume) -> OpenDevice:
        """Activate a volume and hold its device open."""
        with self._gate.hold() as pool:
            return self._devices.open(pool, volume)

    @contextmanager
    def mounted(self, volume: Volume) -> Iterator[Path]:
        """Mount a volume that nothing else uses at its work point; unmount and deactivate it afterwards.

        Raises InUse for a volume that is open elsewhere, NotFound, Unavailable and what mount(2) gives.
        """
        busy.require_not_open_elsewhere(volume, self._devices)
        target = self._layout.work_point(volume.device_id)
        with self.open_device(volume) as device:
            self._mounter.mount(volume, device.info, target)
        try:
            yield target
        finally:
            mount.unmount(target)
            with suppress(OSError):
                target.rmdir()
            with unlimited():
                self.deactivate(volume)

    def require_growth(self, volume: Volume, size: int) -> None:
        """Raise InvalidValue if the file system of a volume cannot be grown to `size` bytes, as its superblock says."""
        was_active = self._devices.info(volume) is not None
        info = self.activate(volume)
        try:
            filesystem.by_name(volume.file_system).require_growth(Path(info.node), size)
        except InvalidValue:
            if not was_active:
                self.deactivate(volume)
            raise

    def fill_device(self, volume: Volume) -> None:
        """Grow the file system of a volume to the size of its device, at the place where it is mounted if it is."""
        kind = filesystem.by_name(volume.file_system)
        with self._in_place(volume) as (node, target):
            kind.grow(node, target, volume.size)

    def finish_growth(self, volume: Volume, before: Volume | None = None) -> Volume:
        """Grow device and file system of a volume in state GROWING to the size in its record; return it READY.

        `before` is what the volume was; a growth that was interrupted by the end of its process has none. If the file
        system is not grown, the volume gets the size of `before` back, and what was raised is raised again. If it is
        grown by a part, it keeps that part, and PartlyDone says so. Without `before` the record becomes READY all the
        same, so that not every change tries the growth again, and PartlyDone says that.
        """
        try:
            self.fill_device(volume)
        except BaseException as error:
            kept = self._settle(volume, before)
            if not isinstance(error, DmthinError) or kept == before:
                raise
            raise PartlyDone(
                f"the {volume.title} has {format_exact(kept.size)} now, but its file system is not grown: {error}",
                hint="run the same resize again",
            ) from None
        return self._save_grown(volume)

    def _settle(self, volume: Volume, before: Volume | None) -> Volume:
        """End a growth that has failed: the volume gets the size that its file system has reached; return it so.

        The program that grows the file system has ended. If its size cannot be read, the volume stays as it is.
        """
        if before is None:
            return self._save_grown(volume)
        kept = volume
        try:
            with unlimited(), self._in_place(volume) as (node, target):
                reached = filesystem.by_name(volume.file_system).size(node, target)
            kept = before if reached <= before.size else replace(volume, size=min(volume_size(reached), volume.size))
            if self._devices.info(kept) is not None:
                with unlimited():
                    self.activate(kept)
        except DmthinError as error:
            logger.warning("the %s may be larger than its file system: %s", volume.title, error)
        return self._save_grown(kept)

    def _save_grown(self, volume: Volume) -> Volume:
        ready = volume.with_state(State.READY)
        with self._ledger.transaction(f"grown {volume.name}"):
            self._ledger.save(ready)
        return ready

    @contextmanager
    def _in_place(self, volume: Volume) -> Iterator[tuple[str, Path]]:
        """Activate and mount a volume, unless it is mounted; yield its device and the place."""
        info = self.activate(volume)
        work = str(self._layout.work_point(volume.device_id))
        if users := [entry.target for entry in mount.of_device(info.dev) if entry.target != work]:
            yield info.node, Path(users[-1])
            return
        with self.mounted(volume) as target:
            yield info.node, target
