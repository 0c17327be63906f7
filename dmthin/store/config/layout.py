"""The layout of a store's folder, and of the devices below its pool."""

import os
from dataclasses import dataclass
from pathlib import Path

from dmthin.kernel.thin import MAX_METADATA_SIZE
from dmthin.pool.backing import Backing, BlockDevice, SparseFile
from dmthin.pool.diskpart import DiskPart
from dmthin.store.state.files import LEDGER_FILE, LOCK_FILE
from dmthin.store.state.model import StoreRecord

DEFAULT_ROOT = Path("/var/lib/dmthin")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store; `root` is absolute and free of links."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "Layout":
        """Return the layout below a folder, which need not be there. A loop of links is left for those who open it."""
        return cls(Path(os.path.realpath(root)))

    @property
    def ledger(self) -> Path:
        return self.root / LEDGER_FILE

    @property
    def lock(self) -> Path:
        return self.root / LOCK_FILE

    @property
    def identity(self) -> str:
        """The folder's device and inode number, which a copy does not share; empty before the folder exists.

        It is part of the uuids of all of the store's devices.
        """
        try:
            folder = self.root.stat()
        except FileNotFoundError:
            return ""
        return f"{folder.st_dev:x}-{folder.st_ino:x}"

    @property
    def work(self) -> Path:
        """Where dmthin mounts volumes for its own work, each at its device id."""
        return self.root / "work"

    @property
    def mounts(self) -> Path:
        """Where containers are mounted by name."""
        return self.root / "mnt"

    def mount_point(self, name: str) -> Path:
        return self.mounts / name

    def work_point(self, device_id: int) -> Path:
        """Return the folder at which a volume is mounted to be filled or grown."""
        return self.work / str(device_id)

    def data(self, record: StoreRecord) -> Backing:
        if not record.metadata_end:
            return self._backing(record.data)
        names = self._names(record, "tdata")
        return DiskPart(Path(record.data), "data", *names, record.metadata_end, record.data_size)

    def metadata(self, record: StoreRecord) -> Backing:
        if not record.metadata_end:
            return self._backing(record.metadata)
        names, end = self._names(record, "tmeta"), min(record.metadata_end, MAX_METADATA_SIZE)
        return DiskPart(Path(record.metadata), "metadata", *names, 0, record.metadata_size, end)

    def uuid(self, record: StoreRecord, what: str) -> str:
        """Return the device-mapper uuid of this store's device for `what`; a copy of the store has another."""
        return "-".join(filter(None, (record.uuid_prefix, what, self.identity)))

    def _names(self, record: StoreRecord, what: str) -> tuple[str, str]:
        return f"{record.prefix}-{what}", self.uuid(record, what)

    def _backing(self, place: str) -> Backing:
        """Return the backing at a place: a block device if the path is absolute, else a file of the store's own."""
        path = self.root / place
        return BlockDevice(path) if place.startswith("/") else SparseFile(path)
