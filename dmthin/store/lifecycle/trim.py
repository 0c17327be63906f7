"""Trim: free blocks of a pool are given back to what lies below it."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from dmthin.errors import KernelError
from dmthin.kernel import block
from dmthin.pool.backing import Backing
from dmthin.pool.guard import Guard
from dmthin.pool.spacemap import SpaceMap
from dmthin.steps import step
from dmthin.store.state.locks import Locks
from dmthin.store.state.model import StoreRecord
from dmthin.units import MIB

_PAUSE_SECONDS = 0.1
"""How long trim suspends the pool at a time, roughly."""

_PUNCH_AT_LEAST = MIB
"""Bytes of a free run that are worth a hole of their own."""


def trim(
    record: StoreRecord,
    backing: Backing,
    metadata_node: Path,
    locks: Locks,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Punch or discard every free run of the data device `backing` of an active pool.

    The pool is suspended for about a tenth of a second at a time: nothing can be allocated then, so what the space map
    calls free is free. `progress` is called with the bitmaps done and in all. Raises KernelError (EOPNOTSUPP) for a
    device that takes no discards.
    """
    done, total = 0, 1
    with SpaceMap(metadata_node) as space_map:
        while done < total:
            with locks.own_pool(), Guard(record.pool_name):
                done, total = _trim_some(space_map, backing, record.block_size, done)
            if progress:
                progress(done, total)


def _trim_some(space_map: SpaceMap, backing: Backing, block_size: int, done: int) -> tuple[int, int]:
    """Free the holes of bitmaps from number `done` on until the time is up; return the bitmaps done and in all.

    Raises KernelError, which names a device that takes no discards.
    """
    deadline = time.monotonic() + _PAUSE_SECONDS
    index = space_map.index()
    total = len(index.bitmaps)
    release = block.punch if backing.is_file else block.discard
    with block.opened(backing.path if backing.is_file else backing.node(), os.O_RDWR) as fd:
        while done < total:
            for first, count in space_map.free_ranges(index, done, _PUNCH_AT_LEAST // block_size):
                try:
                    with step("free", count, "blocks at", first):
                        release(fd, first * block_size, count * block_size)
                except KernelError as error:
                    if error.errno == errno.EOPNOTSUPP:
                        raise KernelError(
                            f"{backing.path} takes no discards", errno=errno.EOPNOTSUPP, hint="there is nothing to trim"
                        ) from None
                    raise
            done += 1
            if time.monotonic() > deadline:
                break
    return done, total
