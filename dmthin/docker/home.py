"""The store in the directory that dockerd's Init names: created at the first start, reconfigured at later ones.

dockerd passes all its options at each start. Those that define the pool were fixed at its creation. The others take
effect now; one that is omitted gets its default again, as in Docker's own driver.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.store.config.options import POOL_OPTIONS, StorageOptions, as_texts, parse_pairs
from dmthin.store.create import create_store, is_store
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background
from dmthin.units import format_exact

logger = logging.getLogger(__name__)

_SIZES = ("dm.loopdatasize", "dm.loopmetadatasize")
_BASE_OPTIONS = ("dm.fs", "dm.mkfsarg")
_PERSISTENT_OPTIONS = (*POOL_OPTIONS, *_BASE_OPTIONS, "dm.basesize")
"""Options that keep their stored value when a later start omits them."""


def open_home(home: Path, texts: Iterable[str], background: Background) -> Store:
    """Return the store in the directory `home`, created if there is none, with dockerd's options applied.

    Raise InvalidValue for options that contradict each other or the store, and what `create_store` raises.
    """
    requested = parse_pairs(texts)
    StorageOptions.from_pairs(requested)
    if not is_store(home):
        logger.info("creating a store in %s", home)
        return create_store(home, as_texts(requested), background=background)
    with Store(home) as store:
        stored = parse_pairs(store.ledger.store().options)
        merged = {key: value for key, value in stored.items() if key in _PERSISTENT_OPTIONS}
        merged |= {key: value for key, value in requested.items() if key not in _SIZES}
        for key in _BASE_OPTIONS:
            if key in requested and requested[key] != stored.get(key, ""):
                _keep_stored(key, requested[key], stored, merged)
    # Opening with the requested options validates them against the pool, before anything is stored.
    Store(home, (text for text in as_texts(requested) if text.partition("=")[0] not in _SIZES)).close()
    if merged != stored:
        with Store(home) as store:
            store.pool.set_options(as_texts(merged))
    store = Store(home, background=background)
    try:
        _extend(store, requested)
    except BaseException:
        store.close()
        raise
    return store


def _keep_stored(key: str, requested: str, stored: dict[str, str], merged: dict[str, str]) -> None:
    """Restore in `merged` the stored value of a base option. Like Docker, only warn about a different one."""
    default = StorageOptions().file_system.name if key == "dm.fs" else ""
    before = stored.get(key, default)
    if requested != before:
        logger.warning("%s=%s is ignored: this store was created with %s", key, requested, before or "none")
    merged.pop(key)
    if key in stored:
        merged[key] = stored[key]


def _extend(store: Store, requested: dict[str, str]) -> None:
    """Extend the pool's files to the requested sizes. Like Docker, only warn about a smaller size."""
    wanted = StorageOptions.from_pairs(requested)
    report = store.pool.status()
    if not report.active:
        store.pool.activate()
        report = store.pool.status()
    sizes = {"dm.loopdatasize": (wanted.data_size, report.data_size)}
    sizes["dm.loopmetadatasize"] = (wanted.metadata_size, report.metadata_size)
    larger: dict[str, int] = {}
    for key, (size, now) in sizes.items():
        if key not in requested or size == now:
            continue
        if size < now:
            has = format_exact(now)
            logger.warning("%s=%s is ignored: the pool has %s and cannot shrink", key, requested[key], has)
        else:
            larger[key] = size
    if larger:
        try:
            store.pool.extend(data_size=larger.get(_SIZES[0]), metadata_size=larger.get(_SIZES[1]))
        except DmthinError as error:
            logger.warning("cannot extend the pool: %s", error)
