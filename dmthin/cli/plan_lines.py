"""Lines of a dry run: the steps of a change as commands that an administrator can paste."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from dmthin.kernel.dmsetup import create_arguments
from dmthin.kernel.thin import ThinTable
from dmthin.store.state.model import StoreRecord, Volume

LEDGER = "# dmthin also writes its ledger: it does not know what these lines make or remove by hand"


def shell(*words: str | Path) -> str:
    """Return a command line, each word quoted as needed."""
    return shlex.join(str(word) for word in words)


def dmsetup(arguments: Iterable[str]) -> str:
    """Return a command line of dmsetup(8)."""
    return shell("dmsetup", *arguments)


def message(record: StoreRecord, text: str) -> str:
    """Return the line that sends a message to the store's pool."""
    return shell("dmsetup", "message", record.pool_name, "0", text)


def create(record: StoreRecord, device_id: int, size: int, *, read_only: bool = False) -> str:
    """Return the line that activates a volume of `size` bytes."""
    table = [thin_table(record, device_id, size).target()]
    name, uuid = record.device_name(device_id), record.device_uuid(device_id)
    return dmsetup([*create_arguments(name, uuid, table), *(["--readonly"] if read_only else [])])


def thin_table(record: StoreRecord, device_id: int, size: int) -> ThinTable:
    """Return the table of a volume of `size` bytes, the pool by its node."""
    return ThinTable(size, f"/dev/mapper/{record.pool_name}", device_id)


def remove(record: StoreRecord, device_id: int) -> str:
    """Return the line that deactivates a volume."""
    return shell("dmsetup", "remove", record.device_name(device_id))


def node(record: StoreRecord, device_id: int) -> str:
    """Return the node that dmsetup makes for a volume."""
    return f"/dev/mapper/{record.device_name(device_id)}"


def snapshot(record: StoreRecord, device_id: int, origin: Volume, *, suspend: bool) -> list[str]:
    """Return the lines that take a snapshot, between a suspend and a resume if the origin is active."""
    line = message(record, f"create_snap {device_id} {origin.device_id}")
    if not suspend:
        return [line]
    device = record.device_name(origin.device_id)
    return [f"dmsetup suspend {device}", line, f"dmsetup resume {device}"]
