"""The volumes of a store, whatever they are for: this package's parts, and the verbs of one volume."""

from dataclasses import replace
from pathlib import Path

from dmthin.errors import InvalidValue
from dmthin.kernel import block, mount
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.pool import filesystem
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.lifecycle.gate import Gate
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import State, Volume
from dmthin.store.volumes import busy
from dmthin.store.volumes.creation import Creation
from dmthin.store.volumes.devices import Devices, OpenDevice
from dmthin.store.volumes.locking import VolumeLocks
from dmthin.store.volumes.mounter import Mounter
from dmthin.store.volumes.mounts import WorkMounts
from dmthin.store.volumes.recovery import Recovery
from dmthin.store.volumes.removal import Removal
from dmthin.store.volumes.teardown import Teardown
from dmthin.units import format_exact, volume_size


class Volumes:
    """The volumes of one store."""

    def __init__(
        self, layout: Layout, ledger: Ledger, locks: Locks, dm: DeviceMapper, gate: Gate, options: StorageOptions
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self.devices = Devices(layout, ledger.store(), dm, options)
        self.mounter = Mounter(layout, options)
        self.mounts = WorkMounts(layout, ledger, gate, self.devices, self.mounter)
        self.locks = VolumeLocks(ledger, locks, self.mounts)
        teardown = Teardown(layout, ledger, self.devices, options)
        self.recovery = Recovery(ledger, locks, dm, gate, self.devices, self.mounts, teardown)
        self.creation = Creation(layout, ledger, locks, self.devices, self.recovery, teardown, options)
        self.removal = Removal(ledger, self.locks, self.devices, self.recovery, teardown, self.mounter, options)

    def info(self, volume: Volume) -> DeviceInfo | None:
        """Return the state of a volume's device, None while it is not active."""
        return self.devices.info(volume)

    def activate(self, volume: Volume) -> DeviceInfo:
        """Create the block device of a volume, or return the one that is there."""
        with self.recovery.transaction() as pool:
            return self.devices.activate(pool, volume)

    def open(self, volume: Volume) -> OpenDevice:
        """Activate a volume and hold its device open, which the caller closes."""
        with self.recovery.transaction() as pool:
            return self.devices.open(pool, volume)

    def ready_device(self, volume: Volume) -> DeviceInfo:
        """Return the device of a volume that was made ahead, created again if it has gone.

        Raises NoDataSpace, NoMetadataSpace or NeedsRepair as the creation of a volume does.
        """
        with self.recovery.transaction() as pool:
            self.creation.require_room(pool.thin, pool.record)
            info = self.devices.info(volume)
            if info is None or not info.live_table or info.suspended or info.deferred_remove:
                return self.devices.activate(pool, volume)
            return info

    def deactivate(self, volume: Volume) -> bool:
        """Remove a volume's device: False if its last user's end does that, as dm.use_deferred_removal allows."""
        with self.recovery.transaction() as pool:
            return self.devices.deactivate(pool, volume)

    def mount(self, volume: Volume, target: Path) -> Path:
        """Mount a volume at a folder, which is made if need be; fine if it is mounted there already.

        Raises InUse for a volume that is open elsewhere, or a folder where another file system is mounted.
        """
        with self.locks.locked(volume) as volume:
            busy.require_not_open_elsewhere(volume, self.devices)
            return self.mount_locked(volume, target)  # which checks the folder: reading the mount table once is enough

    def plan_mount(self, volume: Volume, target: Path) -> bool:
        """Return whether a volume is mounted at a folder already. Raises what mounting it there raises.

        That is InUse (it is open elsewhere, or another file system is mounted there), InvalidValue (not a folder).
        """
        busy.require_not_open_elsewhere(volume, self.devices)
        self.mounter.require_folder(target)
        return self.mounter.is_mounted(self.devices.info(volume), target)

    def mount_locked(self, volume: Volume, target: Path, options: str = "") -> Path:
        """Mount a volume whose lock the caller holds, with mount options for this time only."""
        with self.open(volume) as device:
            self.mounter.mount(volume, device.info, target, options)
        return target

    def mount_detached(self, volume: Volume) -> int:
        """Mount a volume outside of every namespace; return a descriptor of its root. Closing it unmounts."""
        with self.open(volume) as device:
            return self.mounter.mount_detached(volume, device.info)

    def mount_detached_read_only(self, volume: Volume) -> int:
        """Do what `mount_detached` does, read-only. The device stays writable: a journal may have to be replayed."""
        with self.open(volume) as device:
            return self.mounter.mount_detached(replace(volume, read_only=True), device.info)

    def unmount(self, volume: Volume, *, force: bool = False) -> bool:
        """Unmount a volume wherever this namespace has it, and remove its device. False if it was not mounted.

        Raises InUse, which names the users; with `force` the mounts are detached lazily.
        """
        with self.locks.locked(volume) as volume:
            info = self.devices.info(volume)
            if info is None:
                return False
            mounts = mount.of_device(info.dev)
            for entry in reversed(mounts):
                busy.unmount(volume, info, Path(entry.target), lazy=force)
            self.mounter.drop(volume)
            self.deactivate(volume)
            return bool(mounts)

    def grow(self, volume: Volume, size: int, *, or_more: bool = False) -> Volume:
        """Grow a volume and its file system to `size` bytes, mounted or not; return the volume then.

        With `or_more`, one that has been made that large or larger meanwhile is left as it is.

        If that fails or is interrupted, the volume has its former size again, or what its file system has reached.
        Raises InvalidValue (less than now, or no size for the file system), InUse (open elsewhere), NoDataSpace,
        PartlyDone (the file system is grown by a part), and what the program that grows it gives.
        """
        with self.locks.locked(volume) as volume:
            if or_more and volume.size >= size:
                return volume
            larger = self.plan_growth(volume, size)
            with self.recovery.transaction() as pool:
                pool.thin.require_data_space(0)
            self.mounts.require_growth(volume, larger.size)
            with self._ledger.transaction(f"grow {volume.name}"):
                self._ledger.save(larger)
            return self.mounts.finish_growth(larger, volume)

    def plan_growth(self, volume: Volume, size: int) -> Volume:
        """Return the record of a volume that is to grow to `size` bytes, rounded up, checked.

        Raises InvalidValue, InUse.
        """
        size = volume_size(size)
        if size < volume.size:
            raise InvalidValue(
                f"the {volume.title} has {format_exact(volume.size)} and cannot shrink to {format_exact(size)}",
                hint="a volume only grows",
            )
        kind = filesystem.by_name(volume.file_system)
        kind.require_size(size)
        if (info := self.devices.info(volume)) and info.live_table and not info.suspended:  # else it cannot be read yet
            kind.require_growth(Path(info.node), size)
        busy.require_not_open_elsewhere(volume, self.devices)
        return replace(volume, size=size, state=State.GROWING)

    def write_out(self, volume: Volume) -> None:
        """Write the cached data of a mounted volume to the pool (syncfs(2)). The caller holds only the volume's lock.

        On a full pool this waits for space.
        """
        if (info := self.devices.info(volume)) and (mounts := mount.of_device(info.dev)):
            block.sync_file_system(Path(mounts[0].target))
