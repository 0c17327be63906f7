"""Volumes that somebody uses: found out before a change, named in the error, detached where that was asked for."""

import time
from collections.abc import Callable
from pathlib import Path

from dmthin.errors import InUse
from dmthin.kernel import holders, mount
from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.store.state.model import Volume

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.05
_UNKNOWN = "something in the kernel"


def require_not_open_elsewhere(volume: Volume, info: Callable[[], DeviceInfo | None]) -> None:
    """Raise InUse for a device that somebody has open and we have not mounted, such as a virtual machine's disk.

    `info` asks for the device's state, more than once, since blkid and the like open a device for a moment.
    """
    now = info()
    for _ in range(_ATTEMPTS):
        if now is None or not now.open_count or mount.of_device(now.dev):
            return
        time.sleep(_PAUSE_SECONDS)
        now = info()
    who = holders.describe(now.dev) if now else ""
    raise InUse(f"the {volume.title} is in use by {who or _UNKNOWN}", hint="stop that first")


def require_unused(volume: Volume, info: DeviceInfo | None) -> None:
    """Raise InUse for a volume that is mounted or open, saying where and by whom."""
    if info is None or not info.open_count:
        return
    if places := mount.of_device(info.dev):
        who = _users(info)
        raise InUse(
            f"the {volume.title} is mounted at {places[0].target}" + (f", in use by {who}" if who else ""),
            hint=f"run: dmthin container unmount {volume.name}, or give --force",
        )
    raise InUse(f"the {volume.title} is in use by {holders.describe(info.dev) or _UNKNOWN}", hint="stop that first")


def detach(info: DeviceInfo | None) -> None:
    """Take every mount of a device out of this namespace now; what is open stays open until its user ends."""
    for entry in reversed(mount.of_device(info.dev)) if info else ():
        mount.unmount(Path(entry.target), lazy=True)


def unmount(volume: Volume, info: DeviceInfo, target: Path, *, lazy: bool) -> None:
    """Unmount one mount of a volume. Raises InUse, which names the holders or the mount that is inside."""
    try:
        mount.unmount(target, lazy=lazy)
    except InUse:
        inner = [entry.target for entry in mount.under(target) if entry.target != str(target)]
        who = _users(info) or (f"a mount at {inner[0]}" if inner else _UNKNOWN)
        hint = "stop that first, or give --force to detach it lazily"
        raise InUse(f"the {volume.title} is in use by {who}", hint=hint) from None


def _users(info: DeviceInfo) -> str:
    """The holders of a volume besides our own mounts of it, in words."""
    return ", ".join(str(holder) for holder in holders.of_device(info.dev)[:5] if holder.pid)
