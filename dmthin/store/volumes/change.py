"""What a change of volumes works with, and what it gives."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dmthin.kernel.devicemapper import DeviceInfo
from dmthin.pool.thinpool import ThinPool
from dmthin.store.state.model import StoreRecord, Volume


@dataclass(frozen=True, slots=True)
class ActivePool:
    """The pool while a change shares it: it is up, and its table stays as it is."""

    thin: ThinPool
    number: str
    record: StoreRecord


@dataclass(frozen=True, slots=True)
class Made:
    """A volume that was made, and its block device if that was asked for."""

    volume: Volume
    device: DeviceInfo | None = None


Change = Callable[[], AbstractContextManager[ActivePool]]
Record = Callable[[Volume], object]
"""Writes what belongs to a volume's record into the transaction in which the volume becomes READY."""


def no_record(_: Volume) -> None:
    """No record but the volume's own."""
