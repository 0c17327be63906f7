"""Where things lie in a store's folder."""

from dataclasses import dataclass
from pathlib import Path

from dmthin.kernel.thin import MAX_METADATA_SIZE
from dmthin.pool.backing import Backing, BlockDevice, SparseFile
from dmthin.pool.diskpart import DiskPart
from dmthin.store.state.model import StoreRecord

DEFAULT_ROOT = Path("/var/lib/dmthin")
DATA_FILE = "data"
METADATA_FILE = "metadata"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store; `root` is absolute and free of links."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def identity(self) -> str:
        """What a copy of this folder does not share: part of the uuids of all devices, empty before there is one."""
        try:
            folder = self.root.stat()
        except FileNotFoundError:
            return ""
        return f"{folder.st_dev:x}-{folder.st_ino:x}"

    @property
    def work(self) -> Path:
        """Where volumes are mounted for a moment, each at its device id."""
        return self.root / "work"

    @property
    def mounts(self) -> Path:
        """Where containers are mounted by name."""
        return self.root / "mnt"

    def mount_point(self, name: str) -> Path:
        return self.mounts / name

    def work_point(self, device_id: int) -> Path:
        """Where a volume is mounted for a moment, to be filled or grown."""
        return self.work / str(device_id)

    def data(self, record: StoreRecord) -> Backing:
        if not record.border:
            return self._backing(record.data)
        names = self._names(record, "tdata")
        return DiskPart(Path(record.data), "data", *names, record.border, record.data_size)

    def metadata(self, record: StoreRecord) -> Backing:
        if not record.border:
            return self._backing(record.metadata)
        names, end = self._names(record, "tmeta"), min(record.border, MAX_METADATA_SIZE)
        return DiskPart(Path(record.metadata), "metadata", *names, 0, record.metadata_size, end)

    def uuid(self, record: StoreRecord, what: str) -> str:
        """The device-mapper uuid of this store's device for `what`; a copy of the store has another."""
        return "-".join(filter(None, (record.uuid_prefix, what, self.identity)))

    def _names(self, record: StoreRecord, what: str) -> tuple[str, str]:
        return f"{record.prefix}-{what}", self.uuid(record, what)

    def _backing(self, place: str) -> Backing:
        """An absolute place is the administrator's device, any other a file of the store's own."""
        path = self.root / place
        return BlockDevice(path) if place.startswith("/") else SparseFile(path)
