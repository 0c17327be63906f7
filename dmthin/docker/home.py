"""The store that dockerd's Init names: made at the first start, and opened by the options of each later one.

dockerd gives all its options at each start. Those that shape the pool were fixed when it was made; the others hold
from now on, so one that is left out has its default again, as with Docker's own driver.
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
_OF_THE_BASE = ("dm.fs", "dm.mkfsarg")
_STAYING = (*POOL_OPTIONS, *_OF_THE_BASE, "dm.basesize")
"""Options that stay as they were when a later start does not give them."""


def open_home(home: Path, texts: Iterable[str], background: Background) -> Store:
    """The store in the folder `home`, made if there is none, with dockerd's options.

    Raises InvalidValue for options that contradict each other or the store, and what `create_store` raises.
    """
    given = parse_pairs(texts)
    StorageOptions.from_pairs(given)
    if not is_store(home):
        logger.info("making a store in %s", home)
        return create_store(home, as_texts(given), background=background)
    with Store(home) as store:
        stored = parse_pairs(store.ledger.store().options)
        settled = {key: value for key, value in stored.items() if key in _STAYING}
        settled |= {key: value for key, value in given.items() if key not in _SIZES}
        for key in _OF_THE_BASE:
            if key in given and given[key] != stored.get(key, ""):
                _keep_stored(key, given[key], stored, settled)
    Store(home, (text for text in as_texts(given) if text.partition("=")[0] not in _SIZES)).close()
    if settled != stored:
        with Store(home) as store:
            store.pool.set_options(as_texts(settled))
    store = Store(home, background=background)
    try:
        _grow(store, given)
    except BaseException:
        store.close()
        raise
    return store


def _keep_stored(key: str, given: str, stored: dict[str, str], settled: dict[str, str]) -> None:
    """Leave out an option of the base that differs from how that was made: Docker warns, and goes on."""
    default = StorageOptions().file_system.name if key == "dm.fs" else ""
    before = stored.get(key, default)
    if given != before:
        logger.warning("%s=%s is ignored: this store was made with %s", key, given, before or "none")
    settled.pop(key)
    if key in stored:
        settled[key] = stored[key]


def _grow(store: Store, given: dict[str, str]) -> None:
    """Extend the pool's files to the sizes that dockerd gives; a smaller size is a warning only, as in Docker."""
    wanted = StorageOptions.from_pairs(given)
    report = store.pool.status()
    if not report.active:
        store.pool.activate()
        report = store.pool.status()
    sizes = {"dm.loopdatasize": (wanted.data_size, report.data_size)}
    sizes["dm.loopmetadatasize"] = (wanted.metadata_size, report.metadata_size)
    larger: dict[str, int] = {}
    for key, (size, now) in sizes.items():
        if key not in given or size == now:
            continue
        if size < now:
            logger.warning("%s=%s is ignored: the pool has %s and never shrinks", key, given[key], format_exact(now))
        else:
            larger[key] = size
    if larger:
        try:
            store.pool.extend(data_size=larger.get(_SIZES[0]), metadata_size=larger.get(_SIZES[1]))
        except DmthinError as error:
            logger.warning("the pool is not extended: %s", error)
