"""A thin-pool target: messages that are verified, activation, growth.

Source of the rules: Documentation/admin-guide/device-mapper/thin-provisioning.rst. The kernel ignores the result of
the commit that follows a message, so each message is followed by a look at the pool's mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dmthin.errors import AlreadyExists, KernelError, NeedsRepair, NoDataSpace, NoMetadataSpace, NotFound
from dmthin.kernel.devicemapper import DeviceBuilder, DeviceInfo, DeviceMapper
from dmthin.kernel.thin import PoolMode, PoolStatus, PoolTable

_METADATA_HINT = "run: dmthin pool extend --metadata-size"
_REPAIR_HINT = "run: dmthin pool deactivate, then thin_check --clear-needs-check-flag on its metadata"


class ThinPool:
    """The pool of one name. `dm` carries messages and status, `builder` the rare changes of its table."""

    def __init__(self, name: str, uuid: str, dm: DeviceMapper, builder: DeviceBuilder) -> None:
        self.name = name
        self.uuid = uuid
        self._dm = dm
        self._builder = builder

    def info(self) -> DeviceInfo | None:
        """The pool's device, None while it is not active."""
        try:
            return self._dm.info(self.name)
        except NotFound:
            return None

    def is_active(self) -> bool:
        """Whether the pool has a live table."""
        info = self.info()
        return info is not None and info.live_table

    def status(self) -> PoolStatus:
        """The status now, without a commit, so it may lag by a second and never blocks."""
        return PoolStatus.parse(self._dm.status(self.name))

    def table(self) -> PoolTable:
        """The live table."""
        return PoolTable.parse(self._dm.table(self.name))

    def activate(self, table: PoolTable) -> DeviceInfo:
        """Bring the pool up with `table`; an empty device left by a process that died is completed."""
        info = self.info()
        if info is None:
            return self._builder.create(self.name, self.uuid, [table.target()])
        if info.uuid != self.uuid:
            raise AlreadyExists(f"the device {self.name} is somebody else's", hint=f"see: dmsetup info {self.name}")
        if not info.live_table:
            return self.reload(table)
        return self._builder.resume(self.name) if info.suspended else info

    def reload(self, table: PoolTable) -> DeviceInfo:
        """Replace the table of the live pool; I/O pauses meanwhile. The caller has seen that nothing shrinks.

        The table is loaded before the pause, because building it allocates memory, which must not wait for our I/O.
        """
        self._builder.load(self.name, [table.target()])
        return self._builder.resume(self.name)

    def deactivate(self) -> None:
        """Take the pool down. InUse while a volume is active; fine if it is down."""
        if self.info() is not None:
            self._builder.remove(self.name)

    def create_thin(self, device_id: int) -> None:
        """Make an empty volume. AlreadyExists if the id is in use."""
        self._change(f"create_thin {device_id}")

    def create_snap(self, device_id: int, origin_id: int) -> None:
        """Make a snapshot of a volume that is inactive or suspended. AlreadyExists, NotFound (no such origin)."""
        self._change(f"create_snap {device_id} {origin_id}")

    def delete(self, device_id: int) -> bool:
        """Delete an inactive volume: False if there was none, which a repeated deletion takes for success.

        InUse while a device has it.
        """
        try:
            self._change(f"delete {device_id}")
        except NotFound:
            return False
        return True

    def set_transaction_id(self, current: int, new: int) -> None:
        """Move the id that the pool keeps for its manager; refused unless it is `current`."""
        self._change(f"set_transaction_id {current} {new}")

    @contextmanager
    def metadata_snapshot(self) -> Iterator[int]:
        """Hold a consistent view of the metadata for readers of a live pool; its block number in the metadata device.

        There is one per pool and the caller holds the lock for it, so one that is there already is a dead reader's.
        It costs copies of metadata while it is held: seconds, not minutes.
        """
        try:
            yield self.hold_metadata()
        finally:
            self.release_metadata()

    def hold_metadata(self) -> int:
        """Begin what `metadata_snapshot` does; `release_metadata` ends it."""
        self.release_metadata()
        self._change("reserve_metadata_snap")
        root = self.status().held_metadata_root
        if root is None:
            raise KernelError(f"the pool {self.name} has lost its metadata snapshot")
        return root

    def release_metadata(self) -> None:
        """Drop the metadata snapshot if there is one."""
        if self.status().held_metadata_root is not None:
            self._change("release_metadata_snap")

    def require_usable(self, status: PoolStatus) -> None:
        """Raise NeedsRepair for a pool that cannot even be read."""
        if status.mode is PoolMode.FAIL:
            raise NeedsRepair(f"the pool {self.name} has failed", hint=_REPAIR_HINT)

    def require_writable(self, status: PoolStatus | None = None) -> PoolStatus:
        """The status of a pool that takes messages; raises what stands in the way.

        NeedsRepair (failed, read-only for damage), NoMetadataSpace (read-only for want of metadata blocks).
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
        """The status of a pool in which a new volume still has room, as dm.min_free_space asks.

        Raises NoDataSpace, NoMetadataSpace besides what `require_writable` does.
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
        """Send a message and see that it is on the disk; the error says why the pool does not take it."""
        try:
            self._dm.message(self.name, text)
        except NeedsRepair:
            self.require_writable()
            raise
        except NoDataSpace as error:
            # A message takes metadata only.
            raise NoMetadataSpace(error.message, hint=_METADATA_HINT) from None
        self.require_writable()
