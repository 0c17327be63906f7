"""A thin volume as a block device: activation, size, quiescing, removal."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dmthin.errors import AlreadyExists, InUse, KernelError, NotFound
from dmthin.kernel import block, holders
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.kernel.retry import ATTEMPTS, retry_busy
from dmthin.kernel.thin import ThinStatus, ThinTable
from dmthin.pool.guard import Guard, resume
from dmthin.pool.thinpool import ThinPool

_DISCARD_STEP = 8 << 30


class ThinVolume:
    """The volume with one device id. `size` is in bytes: the pool does not keep it, the table tells it."""

    def __init__(self, pool: ThinPool, device_id: int, size: int, name: str, uuid: str, dm: DeviceMapper) -> None:
        self.pool = pool
        self.device_id = device_id
        self.size = size
        self.name = name
        self.uuid = uuid
        self._dm = dm

    def info(self) -> DeviceInfo | None:
        """The volume's device, None while it is not active. AlreadyExists if it is another store's of that name."""
        try:
            info = self._dm.info(self.name)
        except NotFound:
            return None
        if not self.uuid.startswith(info.uuid):  # made by hand from a dry run, it has the first part only
            hint = "a store that was copied cannot be used beside the original"
            raise AlreadyExists(f"the device {self.name} is held by another store", hint=hint)
        return info

    def activate(self, pool_number: str, *, read_only: bool = False) -> DeviceInfo:
        """Make the block device; one that a process left half-made is completed. Safe to repeat.

        `pool_number` is the pool device's `major:minor`. The table is the size that this object was given.
        """
        table = [ThinTable(self.size, pool_number, self.device_id).target()]
        try:
            return self._dm.create(self.name, self.uuid, table, read_only=read_only)
        except AlreadyExists:
            if (info := self.info()) is None:
                raise
        if info.deferred_remove:
            self._dm.cancel_deferred_remove(self.name)
            info = self._dm.info(self.name)
        if info.live_table and ThinTable.parse(self._dm.table(self.name)).size == self.size:
            return resume(self._dm, self.name) if info.suspended else info
        self._dm.load(self.name, table, read_only=read_only)
        return self._dm.resume(self.name)

    def deactivate(self, *, deferred: bool = False, patient: bool = True) -> bool:
        """Remove the block device: False if it is left to its last user, which only `deferred` allows.

        A device that udev or blkid has open for a moment is tried again, if `patient`. Raises InUse, which names the
        holders.
        """
        try:
            return retry_busy(lambda: self._dm.remove(self.name), attempts=ATTEMPTS if patient else 1)
        except NotFound:
            return True
        except InUse:
            if not deferred:
                raise self.busy() from None
        return self._dm.remove(self.name, deferred=True)

    def busy(self) -> InUse:
        """The error for a device that is open, with those who hold it."""
        info = self.info()
        who = holders.describe(info.dev) if info else ""
        return InUse(f"the volume's device {self.name} is in use by {who or 'something in the kernel'}")

    def status(self) -> ThinStatus:
        """Mapped bytes; the volume must be active."""
        return ThinStatus.parse(self._dm.status(self.name))

    def discard_all(self) -> None:
        """Give every block of an active volume that nobody uses back to the pool and to what lies below it."""
        info = self._dm.info(self.name)
        with block.opened(Path(info.node), os.O_WRONLY) as fd:
            for offset in range(0, self.size, _DISCARD_STEP):
                try:
                    block.discard(fd, offset, min(_DISCARD_STEP, self.size - offset))
                except KernelError as error:
                    if error.errno == errno.EOPNOTSUPP:
                        return
                    raise

    @contextmanager
    def quiesced(self, keep: int = -1) -> Iterator[None]:
        """Hold the volume's I/O, its file system consistent on the disk, while a snapshot is taken of it.

        Nothing to do for a volume that nobody has open: the last close has written out what there was (the kernel's
        blkdev_put). A guard process resumes it should this process die meanwhile, and has `keep`, a descriptor, open
        until it has. Those who may quiesce one volume at the same time take turns by a lock of their own.
        """
        with ExitStack() as held:
            if (info := self.info()) and info.in_use:
                self.pool.require_data_space(0)
                try:
                    held.enter_context(Guard(self.name, keep))
                except KernelError:
                    # A device whose removal was deferred goes with its last user, just now for instance.
                    if self.info() is not None:
                        raise
            yield
