"""A thin volume as a block device: activation, discards, quiescing, removal."""

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
    """The volume with one device id. `size` is in bytes: the pool does not keep it, only the table has it.

    Every method raises Unavailable (no device-mapper), NotPermitted and KernelError as well.
    """

    def __init__(self, pool: ThinPool, device_id: int, size: int, name: str, uuid: str, dm: DeviceMapper) -> None:
        self.pool = pool
        self.device_id = device_id
        self.size = size
        self.name = name
        self.uuid = uuid
        self._dm = dm

    def info(self) -> DeviceInfo | None:
        """Return the state of the volume's device, None if it is not active.

        Raise AlreadyExists if the device of this name is another store's.
        """
        try:
            info = self._dm.info(self.name)
        except NotFound:
            return None
        if not self.uuid.startswith(info.uuid):  # a device made from the commands of a dry run has its first part only
            hint = "a store that was copied cannot be used beside the original"
            raise AlreadyExists(f"the device {self.name} is held by another store", hint=hint)
        return info

    def activate(self, pool_number: str, *, read_only: bool = False) -> DeviceInfo:
        """Make the block device, or complete one that a process that died has left. Safe to repeat.

        `pool_number` is the pool device's `major:minor`. The device gets this object's size. Raise AlreadyExists if the
        device of this name is another store's, NotFound if the pool has no such volume, InUse.
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
        """Remove the block device. Return False if it is left to its last user, which only `deferred` allows.

        With `patient` a device that is open is tried again for a moment. Raise InUse, which names the holders, and what
        `info` raises.
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
        """Return the error for a device that is open, which names its holders. Raise what `info` raises."""
        info = self.info()
        who = holders.describe(info.dev) if info else holders.UNSEEN
        return InUse(f"the volume's device {self.name} is in use by {who}")

    def status(self) -> ThinStatus:
        """Return the mapped bytes of an active volume. Raise NotFound."""
        return ThinStatus.parse(self._dm.status(self.name))

    def discard_all(self) -> None:
        """Discard every block of an active volume, so that the pool, and the device below it, have them back.

        Do nothing where the device takes no discards. Raise NotFound.
        """
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
    def quiesced(self, lock_fd: int = -1) -> Iterator[None]:
        """Suspend the volume during the block, its file system frozen and consistent on the disk, for a snapshot of it.

        A volume that is not open is not suspended: the last close has written out what there was (blkdev_put in the
        kernel). A guard process resumes it if this process dies. Until it has, it keeps `lock_fd` open, the descriptor
        of the suspend lock, by which callers exclude each other.

        Raise TimeLimit if the device cannot be suspended, NoDataSpace if the pool is full, which would block the
        suspend, NeedsRepair, NoMetadataSpace, and what `info` raises.
        """
        with ExitStack() as held:
            if (info := self.info()) and info.in_use:
                self.pool.require_data_space(0)
                try:
                    held.enter_context(Guard(self.name, lock_fd))
                except KernelError:
                    # A device whose removal was deferred goes with its last user, perhaps just now.
                    if self.info() is not None:
                        raise
            yield
