"""Volumes in use: detected before a change, named in the error, detached where that was asked for."""

from pathlib import Path

from dmthin.errors import InUse
from dmthin.kernel import holders, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.kernel.retry import retry_busy
from dmthin.store.state.model import Volume
from dmthin.store.volumes.devices import Devices


def require_not_open_elsewhere(volume: Volume, devices: Devices) -> None:
    """Raise InUse for a device that is open but not mounted here, such as a virtual machine's disk.

    The device is looked at more than once, since blkid and the like open it for a moment.
    """

    def require_free() -> None:
        now = devices.info(volume)
        if now is not None and now.open_count and not mount.of_device(now.dev):
            raise InUse(f"the {volume.title} is in use")

    try:
        retry_busy(require_free)
    except InUse as error:
        now = devices.info(volume)
        who = holders.describe(now.dev) if now else holders.UNSEEN
        raise InUse(f"{error.message} by {who}", hint="stop that first") from None


def require_unused(volume: Volume, info: DeviceInfo | None) -> None:
    """Raise InUse, with the place and the users, for a volume that is mounted or open."""
    if info is None or not info.open_count:
        return
    if places := mount.of_device(info.dev):
        who = _users(info)
        raise InUse(
            f"the {volume.title} is mounted at {places[0].target}" + (f", in use by {who}" if who else ""),
            hint=f"run: dmthin container unmount {volume.name}, or give --force",
        )
    raise InUse(f"the {volume.title} is in use by {holders.describe(info.dev)}", hint="stop that first")


def detach(info: DeviceInfo | None) -> None:
    """Detach every mount of a device from this namespace; open files stay usable until they are closed."""
    for entry in reversed(mount.of_device(info.dev)) if info else ():
        mount.unmount(Path(entry.target), lazy=True)


def unmount(volume: Volume, info: DeviceInfo, target: Path, *, lazy: bool) -> None:
    """Unmount one mount of a volume. Raises InUse, which names the users or the mount below it."""
    try:
        mount.unmount(target, lazy=lazy)
    except InUse:
        inner = [entry.target for entry in mount.under(target) if entry.target != str(target)]
        who = _users(info) or (f"a mount at {inner[0]}" if inner else holders.UNSEEN)
        hint = "stop that first, or give --force to detach it lazily"
        raise InUse(f"the {volume.title} is in use by {who}", hint=hint) from None


def _users(info: DeviceInfo) -> str:
    """Return the processes that use a volume, in words; empty for none but dmthin's own mounts."""
    return ", ".join(str(holder) for holder in holders.of_device(info.dev)[:5] if holder.pid)
