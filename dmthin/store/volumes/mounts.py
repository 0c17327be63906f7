"""Mounts of volumes for dmthin's own work, and the growth of the file systems on them.

Everything here takes the pool from the gate, without recovering other volumes: recovery itself uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.errors import DmthinError, PartlyDone
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
from dmthin.units import format_exact


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

    def fill_device(self, volume: Volume) -> None:
        """Grow the file system of a volume to the size of its device, at the place where it is mounted if it is."""
        kind = filesystem.by_name(volume.file_system)
        info = self.activate(volume)
        work = str(self._layout.work_point(volume.device_id))
        if users := [entry.target for entry in mount.of_device(info.dev) if entry.target != work]:
            kind.grow(info.node, Path(users[-1]))
            return
        with self.mounted(volume) as target:
            kind.grow(info.node, target)

    def finish_growth(self, volume: Volume) -> Volume:
        """Grow device and file system of a volume in state GROWING to the size in its record; return it READY.

        The record becomes READY even if the file system cannot be grown: the volume stays usable, and the growth is not
        tried again by every change. Raises PartlyDone then.
        """
        try:
            self.fill_device(volume)
        except DmthinError as error:
            raise PartlyDone(
                f"the {volume.title} has {format_exact(volume.size)} now, but its file system is not grown: {error}",
                hint="run the same resize again",
            ) from None
        finally:
            ready = volume.with_state(State.READY)
            with self._ledger.transaction(f"grown {volume.name}"):
                self._ledger.save(ready)
        return ready
