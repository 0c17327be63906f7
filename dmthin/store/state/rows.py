"""Rows of the ledger's tables as values, and back."""

import json

from dmthin.errors import KernelError
from dmthin.store.state.model import Kind, State, StoreRecord, StoreState, Volume

STORE_COLUMNS = (
    "uuid, state, block_size, data, metadata, pool, options, generation, clean, data_size, data_target,"
    " metadata_target, metadata_size, border"
)
"""`border` is the column of `StoreRecord.metadata_end`."""

VOLUME_COLUMNS = "device_id, name, kind, state, size, file_system, parent, created, uses, read_only"

Row = tuple[object, ...]


def volume_row(volume: Volume) -> Row:
    """Return the values of VOLUME_COLUMNS for a volume."""
    return (
        volume.device_id,
        volume.name,
        volume.kind,
        volume.state,
        volume.size,
        volume.file_system,
        volume.parent,
        volume.created,
        volume.uses,
        int(volume.read_only),
    )


def volume_of(row: Row) -> Volume:
    """Return the volume that a row of VOLUME_COLUMNS describes. Raises KernelError for a damaged row."""
    device_id, name, kind, state, size, file_system, parent, created, uses, read_only = row
    return Volume(
        device_id=integer(device_id),
        name=str(name),
        kind=Kind(str(kind)),
        state=State(str(state)),
        size=integer(size),
        file_system=str(file_system),
        parent=optional_integer(parent),
        created=integer(created),
        uses=integer(uses),
        read_only=bool(read_only),
    )


def store_row(record: StoreRecord) -> Row:
    """Return the values of STORE_COLUMNS for a store's record."""
    return (
        record.uuid,
        record.state,
        record.block_size,
        record.data,
        record.metadata,
        record.pool,
        json.dumps(record.options),
        record.generation,
        int(record.clean),
        record.data_size,
        record.data_target,
        record.metadata_target,
        record.metadata_size,
        record.metadata_end,
    )


def store_of(row: Row) -> StoreRecord:
    """Return the store's record that a row of STORE_COLUMNS describes. Raises KernelError for a damaged row."""
    uuid, state, block_size, data, metadata, pool, options, generation, clean, data_size, *growth = row
    data_target, metadata_target, metadata_size, metadata_end = growth
    return StoreRecord(
        uuid=str(uuid),
        state=StoreState(str(state)),
        block_size=integer(block_size),
        data=str(data),
        metadata=str(metadata),
        pool=str(pool),
        options=tuple(json.loads(str(options))),
        generation=integer(generation),
        clean=bool(clean),
        data_size=integer(data_size),
        data_target=optional_integer(data_target),
        metadata_target=optional_integer(metadata_target),
        metadata_size=integer(metadata_size),
        metadata_end=integer(metadata_end),
    )


def integer(value: object) -> int:
    """Return a value that must be an integer. Raises KernelError for any other."""
    if not isinstance(value, int):
        raise KernelError(f"the ledger holds {value!r} where a number belongs")
    return value


def optional_integer(value: object) -> int | None:
    """Return an integer or None. Raises KernelError for any other value."""
    return None if value is None else integer(value)
