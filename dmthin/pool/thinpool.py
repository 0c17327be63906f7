"""A thin-pool target: activation, growth, and messages that are verified.

Source of the rules: Documentation/admin-guide/device-mapper/thin-provisioning.rst. The kernel ignores the result of
the commit that follows a message, so after each message the pool's mode is checked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dmthin.errors import AlreadyExists, KernelError, NeedsRepair, NoDataSpace, NoMetadataSpace, NotFound
from dmthin.kernel.devicemapper import DeviceBuilder, DeviceInfo, DeviceMapper
from dmthin.kernel.thin import PoolMode, PoolStatus, PoolTable

_METADATA_HINT = "run: dmthin pool extend --metadata-size"
_REPAIR_HINT = "run: dmthin pool deactivate, then thin_check --clear-needs-check-flag on its metadata"


class ThinPool:
    """The pool of one name. `dm` is for messages and status, `builder` for the rare changes of its table.

    Every method raises Unavailable (no device-mapper), NotPermitted and KernelError as well.
    """

    def __init__(self, name: str, uuid: str, dm: DeviceMapper, builder: DeviceBuilder) -> None:
        self.name = name
        self.uuid = uuid
        self._dm = dm
        self._builder = builder

    def info(self) -> DeviceInfo | None:
        """Return the state of the pool's device, None if it is not active."""
        try:
            return self._dm.info(self.name)
        except NotFound:
            return None

    def is_active(self) -> bool:
        """Return whether the pool has a live table."""
        info = self.info()
        return info is not None and info.live_table

    def status(self) -> PoolStatus:
        """Return the status without a commit: it never blocks, and may lag by a second. Raise NotFound."""
        return PoolStatus.parse(self._dm.status(self.name))

    def table(self) -> PoolTable:
        """Return the live table. Raise NotFound."""
        return PoolTable.parse(self._dm.table(self.name))

    def activate(self, table: PoolTable) -> DeviceInfo:
        """Activate the pool with `table`, or complete a device without one that a process that died has left.

        Raise AlreadyExists if the device of this name is not this pool's, InUse if another pool has its devices.
        """
        info = self.info()
        if info is None:
            return self._builder.create(self.name, self.uuid, [table.target()])
        if info.uuid != self.uuid:
            raise AlreadyExists(f"the device {self.name} is not this pool's", hint=f"see: dmsetup info {self.name}")
        if not info.live_table:
            return self.reload(table)
        return self._builder.resume(self.name) if info.suspended else info

    def reload(self, table: PoolTable) -> DeviceInfo:
        """Replace the table of the live pool, whose I/O is suspended for a moment. The caller checks that it grows.

        The table is loaded before the suspend: that allocates memory, which must not wait for I/O of this pool. Raise
        NotFound.
        """
        self._builder.load(self.name, [table.target()])
        return self._builder.resume(self.name)

    def deactivate(self) -> None:
        """Deactivate the pool, if it is active. Raise InUse while a volume is active."""
        if self.info() is not None:
            self._builder.remove(self.name)

    def create_thin(self, device_id: int) -> None:
        """Make an empty volume. Raise AlreadyExists if the pool has the id, NeedsRepair, NoMetadataSpace, NotFound."""
        self._change(f"create_thin {device_id}")

    def create_snap(self, device_id: int, origin_id: int) -> None:
        """Make a snapshot of a volume that is inactive or suspended.

        Raise AlreadyExists if the pool has the id, NotFound if it has no such origin, NeedsRepair, NoMetadataSpace.
        """
        self._change(f"create_snap {device_id} {origin_id}")

    def delete(self, device_id: int) -> bool:
        """Delete an inactive volume. Return False if there was none, which is a success where this is repeated.

        Raise InUse if it is active, NeedsRepair, NoMetadataSpace.
        """
        try:
            self._change(f"delete {device_id}")
        except NotFound:
            return False
        return True

    def set_transaction_id(self, current: int, new: int) -> None:
        """Change the transaction id, which the pool keeps for its manager.

        Raise KernelInvalid unless it is `current`, NeedsRepair, NoMetadataSpace, NotFound.
        """
        self._change(f"set_transaction_id {current} {new}")

    @contextmanager
    def metadata_snapshot(self) -> Iterator[int]:
        """Hold a metadata snapshot, a consistent view for readers of a live pool; yield its block number.

        Raise what `hold_metadata` raises.
        """
        try:
            yield self.hold_metadata()
        finally:
            self.release_metadata()

    def hold_metadata(self) -> int:
        """Take the pool's metadata snapshot, and return its block number in the metadata device.

        There is one per pool, and the caller holds the lock for it: one that is there already was left by a reader that
        died. While it is held, changes copy metadata blocks, so hold it for seconds. `release_metadata` ends it. Raise
        NeedsRepair, NoMetadataSpace, NotFound.
        """
        self.release_metadata()
        self._change("reserve_metadata_snap")
        root = self.status().held_metadata_root
        if root is None:
            raise KernelError(f"the pool {self.name} has lost its metadata snapshot")
        return root

    def release_metadata(self) -> None:
        """Release the metadata snapshot if there is one. Raise NeedsRepair, NoMetadataSpace, NotFound."""
        if self.status().held_metadata_root is not None:
            self._change("release_metadata_snap")

    def require_usable(self, status: PoolStatus) -> None:
        """Raise NeedsRepair for a pool that has failed: it cannot even be read."""
        if status.mode is PoolMode.FAIL:
            raise NeedsRepair(f"the pool {self.name} has failed", hint=_REPAIR_HINT)

    def require_writable(self, status: PoolStatus | None = None) -> PoolStatus:
        """Return the status of a pool that takes messages, by default its status now.

        Raise NeedsRepair if it has failed, needs a check or is read-only, but NoMetadataSpace if it is read-only
        because it has no free metadata block.
        """
        status = status or self.status()
        self.require_usable(status)
        if status.needs_check:
            raise NeedsRepair(f"the pool {self.name} needs a check", hint=_REPAIR_HINT)
        if status.mode is PoolMode.READ_ONLY:
            if status.metadata_used_blocks >= status.metadata_total_blocks:
                raise NoMetadataSpace(f"the pool {self.name} is out of metadata space", hint=_METADATA_HINT)
            raise NeedsRepair(f"the pool {self.name} is read-only", hint="see the kernel log: dmesg")
        return status

    def require_data_space(self, min_free_percent: int) -> PoolStatus:
        """Return the status of a pool that has room for a new volume, as dm.min_free_space defines it.

        Raise NoDataSpace, NoMetadataSpace, and NeedsRepair as `require_writable`.
        """
        status = self.require_writable()
        hint = "remove volumes, extend the pool (dmthin pool extend), or lower dm.min_free_space"
        if status.mode is PoolMode.OUT_OF_DATA_SPACE:
            raise NoDataSpace(f"the pool {self.name} is out of data space", hint=hint)
        if not min_free_percent:
            return status
        free = status.data_total_blocks - status.data_used_blocks
        if free < max(1, status.data_total_blocks * min_free_percent // 100):
            raise NoDataSpace(f"less than {min_free_percent}% of {self.name}'s data is free", hint=hint)
        free = status.metadata_total_blocks - status.metadata_used_blocks
        if free < max(1, (status.metadata_total_blocks - status.metadata_reserve_blocks) * min_free_percent // 100):
            raise NoMetadataSpace(f"less than {min_free_percent}% of {self.name}'s metadata is free", hint=hint)
        return status

    def _change(self, text: str) -> None:
        """Send a message and check that the pool has committed it. Raise the reason if the pool does not take it."""
        try:
            self._dm.message(self.name, text)
        except NeedsRepair:
            self.require_writable()
            raise
        except NoDataSpace as error:
            # A message takes metadata only.
            raise NoMetadataSpace(error.message, hint=_METADATA_HINT) from None
        self.require_writable()
