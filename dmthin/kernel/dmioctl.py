"""Device-mapper by ioctl on /dev/mapper/control: some 50 times faster than a dmsetup process.

Buffers have at least 1024 bytes, the size up to which CPython 3.11 releases its lock during an ioctl. A larger table or
message is sent while it is held.
"""

import errno
import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from dmthin.errors import KernelError, KernelInvalid, NotFound, NotPermitted, TimeLimit, Unavailable
from dmthin.kernel import devnode, dmabi
from dmthin.kernel.devicemapper import (
    DeviceInfo,
    DeviceName,
    Target,
    UdevRules,
    Version,
    check_name,
    check_uuid,
    request_failure,
)
from dmthin.kernel.dmabi import Flag, Header, Request
from dmthin.kernel.ioctl import ioctl
from dmthin.os_errors import DEVICE_MAPPER_NODE, NO_THIN_POOL, os_failure
from dmthin.steps import step

_IN_SYSFS = Path("/sys/class/misc/device-mapper")
_BUFFER = 1024
_LARGEST_REPLY = 16 << 20
_BY_NAME = frozenset(Request) - {Request.VERSION, Request.LIST_DEVICES, Request.LIST_VERSIONS, Request.DEV_ARM_POLL}


class IoctlDeviceMapper:
    """A connection to the kernel's device-mapper; implements `DeviceMapper`. Threads may share one.

    Each event of a device that this connection changes carries `udev_rules`. Their cookie is zero, so no semaphore is
    made and no call waits for udev: devtmpfs makes the node /dev/dm-N, or `devnode` does.
    """

    def __init__(self, udev_rules: UdevRules = UdevRules.PRIVATE) -> None:
        """Open the control node. Raise Unavailable (no device-mapper), NotPermitted."""
        self._event = udev_rules << 16
        try:
            self._fd = devnode.open_control(devnode.DM_CONTROL)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EROFS) and _IN_SYSFS.exists():
                what = f"{devnode.DM_CONTROL} is missing, though this kernel has device-mapper"
                raise Unavailable(what, hint="mount devtmpfs on /dev, or run: dmsetup mknodes") from None
            raise os_failure(error, f"open {devnode.DM_CONTROL}", DEVICE_MAPPER_NODE) from None

    def close(self) -> None:
        """Close the control node; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            devnode.remove_unused()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def version(self) -> Version:
        header, _ = self._call(Request.VERSION, "version")
        return Version(header.version_major, header.version_minor, header.version_patch)

    def target_versions(self) -> dict[str, Version]:
        header, buffer = self._call(Request.LIST_VERSIONS, "list targets")
        return dict(dmabi.unpack_versions(buffer, header))

    def create(self, name: str, uuid: str = "", table: Sequence[Target] = (), *, read_only: bool = False) -> DeviceInfo:
        with step("dm create", name):
            info = self._call(Request.DEV_CREATE, "create", name, uuid=uuid)[0].info()
        if not table:
            return info
        try:
            self.load(name, table, read_only=read_only)
            return self.resume(name)
        except BaseException:
            self.remove(name)
            raise

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> DeviceInfo:
        flags = Flag.READ_ONLY if read_only else 0
        payload = dmabi.pack_table(table)
        with step("dm load", name):
            return self._call(Request.TABLE_LOAD, "load", name, flags=flags, payload=payload, target_count=len(table))[
                0
            ].info()

    def clear(self, name: str) -> DeviceInfo:
        with step("dm clear", name):
            return self._call(Request.TABLE_CLEAR, "clear", name)[0].info()

    def suspend(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        with step("dm suspend", name):
            flags = Flag.SUSPEND | _quiesce_flags(flush, lock_fs)
            return self._call(Request.DEV_SUSPEND, "suspend", name, flags=flags)[0].info()

    def resume(self, name: str, *, flush: bool = True, lock_fs: bool = True) -> DeviceInfo:
        with step("dm resume", name):
            flags = _quiesce_flags(flush, lock_fs)
            info = self._call(Request.DEV_SUSPEND, "resume", name, flags=flags, event=self._event)[0].info()
            devnode.ensure(info.node, info.dev)
            return info

    def message(self, name: str, text: str, sector: int = 0) -> str:
        payload = dmabi.pack_message(text, sector)
        with step("dm message", name, text):
            try:
                header, buffer = self._call(Request.TARGET_MSG, f"message {text!r} to", name, payload=payload)
            except KernelInvalid:
                # Of a device without a live table later kernels (seen: 6.12, 7.2) say only that.
                if text.startswith("@") or self.info(name).live_table:
                    raise
                raise _no_live_table(f"message {text!r} to", name) from None
        return dmabi.unpack_answer(buffer, header).strip()

    def status(self, name: str, *, flush: bool = False) -> list[Target]:
        header, buffer = self._call(Request.TABLE_STATUS, "status", name, flags=0 if flush else Flag.NO_FLUSH)
        return list(dmabi.unpack_targets(buffer, header))

    def table(self, name: str) -> list[Target]:
        flags = Flag.STATUS_TABLE | Flag.NO_FLUSH
        header, buffer = self._call(Request.TABLE_STATUS, "table", name, flags=flags)
        return list(dmabi.unpack_targets(buffer, header))

    def info(self, name: str) -> DeviceInfo:
        info = self._call(Request.DEV_STATUS, "info", name)[0].info()
        with suppress(NotPermitted, Unavailable, KernelError):  # whoever only looks at the device does without a node
            devnode.ensure(info.node, info.dev)
        return info

    def devices(self) -> list[DeviceName]:
        header, buffer = self._call(Request.LIST_DEVICES, "list devices")
        return list(dmabi.unpack_devices(buffer, header))

    def rename(self, name: str, new_name: str) -> None:
        with step("dm rename", name, new_name):
            payload = check_name(new_name).encode() + b"\0"
            self._call(Request.DEV_RENAME, "rename", name, payload=payload, event=self._event)

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        flags = Flag.DEFERRED_REMOVE if deferred else 0
        with step("dm remove", name):
            header, _ = self._call(Request.DEV_REMOVE, "remove", name, flags=flags, event=self._event)
        devnode.remove_unused()
        return not header.flags & Flag.DEFERRED_REMOVE

    def cancel_deferred_remove(self, name: str) -> None:
        self.message(name, "@cancel_deferred_remove")

    def wait(self, name: str, event_number: int, timeout: float) -> int:
        """As in `DeviceMapper`. It polls the control node, so that signals and other threads go on meanwhile."""
        deadline = time.monotonic() + timeout
        with EventPoll() as events:
            while True:
                events.arm()
                if (now := self.info(name).event_number) != event_number:
                    return now
                if (left := deadline - time.monotonic()) <= 0 or not events.poll(left):
                    raise TimeLimit(f"no event of the device {name} within {timeout:g} s")

    def _call(
        self,
        request: Request,
        doing: str,
        name: str = "",
        *,
        uuid: str = "",
        flags: int = 0,
        event: int = 0,
        payload: bytes = b"",
        target_count: int = 0,
    ) -> tuple[Header, bytearray]:
        raw_name = check_name(name).encode() if request in _BY_NAME else b""
        size = max(_BUFFER, dmabi.HEADER_SIZE + len(payload))
        while True:
            asked = Header(
                data_size=size,
                name=raw_name,
                uuid=check_uuid(uuid).encode(),
                flags=flags,
                event_number=event,
                target_count=target_count,
            )
            buffer = bytearray(asked.pack() + payload)
            buffer += bytes(size - len(buffer))
            self._ioctl(request, buffer, doing, name, flags)
            header = Header.unpack(buffer)
            if not header.flags & Flag.BUFFER_FULL:
                return header, buffer
            size *= 4
            if size > _LARGEST_REPLY:
                raise Unavailable(f"device-mapper: {doing} {name}: the answer is longer than {_LARGEST_REPLY} bytes")

    def _ioctl(self, request: Request, buffer: bytearray, doing: str, name: str, flags: int) -> None:
        try:
            result = ioctl(self._fd, request.code, buffer, request, name, flags)
        except OSError as error:
            raise request_failure(error.errno or 0, doing, name) from None
        if result:
            # Linux 6.1 answers a message for a device without a live table with a positive number, which is no error.
            raise _no_live_table(doing, name)


def _no_live_table(doing: str, name: str) -> NotFound:
    return NotFound(f"device-mapper: {doing} {name}: the device has no live table")


class EventPoll:
    """A descriptor that becomes readable at the next event of any mapped device (DM_DEV_ARM_POLL, interface 4.37).

    Arm it, then read the state to be watched, then poll: no event in between is lost.
    """

    def __init__(self) -> None:
        self._control = IoctlDeviceMapper()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._control._fd

    def arm(self) -> None:
        """Forget earlier events. Raise KernelError."""
        self._control._call(Request.DEV_ARM_POLL, "arm poll")

    def poll(self, timeout: float) -> bool:
        """Return whether an event comes within `timeout` seconds, or has come since the last `arm`."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()


def require_thin_pool(dm: IoctlDeviceMapper) -> None:
    """Raise Unavailable unless the kernel has the thin-pool target, KernelError."""
    if "thin-pool" not in dm.target_versions():
        raise Unavailable("this kernel has no thin-pool target", hint=NO_THIN_POOL)


def _quiesce_flags(flush: bool, lock_fs: bool) -> int:
    return (0 if flush else Flag.NO_FLUSH) | (0 if lock_fs else Flag.SKIP_LOCK_FS)
