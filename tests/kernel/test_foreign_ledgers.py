"""Ledgers that are not the pool's: old copies, other generations, whole stores that were copied."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    NeedsRepair,
    NotFound,
)
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support import thintools
from tests.support.processes import program
from tests.support.raw_volumes import again, raw_volume, sizes, written
from tests.support.stores import kernel_state, take_pool_down, traces

Actions = list[tuple[str, Callable[[Store], object]]]


COPY_ACTIONS: Actions = [
    ("unmount", lambda store: store.containers.unmount("web")),
    ("unmount-force", lambda store: store.containers.unmount("web", force=True)),
    ("remove", lambda store: store.containers.remove("idle")),
    ("remove-force", lambda store: store.containers.remove("web", force=True)),
    ("mount", lambda store: store.containers.mount("idle")),
    ("resize", lambda store: store.containers.resize("web", 512 * MIB)),
    ("commit", lambda store: store.images.commit("web", "new")),
    ("create", lambda store: store.containers.create("image", "new")),
    ("extend", lambda store: store.pool.extend(data_size=8 * GIB)),
    ("deactivate", lambda store: store.pool.deactivate()),
    ("destroy", lambda store: store.pool.destroy()),
]


def test_a_ledger_from_an_old_copy_costs_no_volume(store: Store, image: str, scratch: Path) -> None:
    root = store.layout.root
    store.close()
    shutil.copy(store.layout.ledger, scratch / "old.db")
    with Store(root) as now:
        precious = now.containers.create(image, "precious")
        (now.containers.mount("precious") / "data").write_text("precious\n")
        now.containers.unmount("precious")
        held = thintools.ids_in(now)
    shutil.copy(store.layout.ledger, scratch / "new.db")
    shutil.copy(scratch / "old.db", store.layout.ledger)
    try:
        with Store(root) as now:
            with pytest.raises((NeedsRepair, AlreadyExists)):
                now.containers.create(image, "other")
            assert thintools.ids_in(now) == held
            with suppress(DmthinError):
                now.containers.create(image, "another")
            assert precious.device_id in held <= thintools.ids_in(now)
    finally:
        shutil.copy(scratch / "new.db", store.layout.ledger)
    with Store(root) as now:
        record = now.ledger.store()
        for foreign in thintools.ids_in(now) - {volume.device_id for volume in now.ledger.volumes()}:
            with suppress(NotFound):
                now.dm.remove(record.device_name(foreign))
            now.lifecycle.activation.pool(record).delete(foreign)
        assert (now.containers.mount("precious") / "data").read_text() == "precious\n"


def test_a_pool_of_another_generation_goes_down(store: Store, image: str) -> None:
    for active in (True, False):
        if not active:
            store.pool.deactivate()
        record = store.ledger.store()
        with store.ledger.transaction("tamper"):
            store.ledger.save_store(replace(record, generation=record.generation + 5))
        if not active:
            with pytest.raises(NeedsRepair, match="generation"):
                store.containers.create(image, "web")
        store.pool.deactivate()
        assert traces(store) == []
        with store.ledger.transaction("mend"):
            store.ledger.save_store(replace(record, clean=True))
        store.pool.activate()


def test_a_copied_store_cannot_touch_the_original(store: Store, image: str, scratch: Path) -> None:
    web, idle = store.containers.create(image, "web"), store.containers.create(image, "idle")
    place = store.containers.mount("web")
    (place / "data").write_text("original\n")
    store.ledger.close()
    copy = scratch / "copy"
    copy.mkdir(mode=0o700)
    for file in store.layout.root.iterdir():
        if file.is_file():
            subprocess.run(["cp", "-a", "--sparse=always", str(file), str(copy)], check=True)
    held, kernel, size = thintools.ids_in(store), kernel_state(), store.layout.data(store.ledger.store()).size()
    done = []
    for name, action in COPY_ACTIONS:
        with suppress(AlreadyExists), Store(copy) as other:
            action(other)
            done.append(name)
        if kernel_state() != kernel or thintools.ids_in(store) != held:
            done.append(f"changed the original: {name}")
            break
    assert done == []
    assert (place / "data").read_text() == "original\n"
    assert {web.device_id, idle.device_id} <= thintools.ids_in(store)
    assert store.layout.data(store.ledger.store()).size() == size


@pytest.mark.parametrize("when", ["active", "inactive"])
def test_a_copied_store_does_not_touch_the_pool_of_the_other(
    make_store: Callable[..., Store], scratch: Path, when: str
) -> None:
    store = make_store()
    oracle = written(store)
    if when == "inactive":
        store.volumes.deactivate(store.ledger.ready("volume"))
        store.pool.deactivate()
    store.ledger.close()
    program("cp", "-a", "--sparse=always", str(store.layout.root), str(scratch / "copy"))
    store = Store(store.layout.root)
    store.pool.activate()
    with Store(scratch / "copy") as copy:
        actions: tuple[Callable[[], object], ...] = (
            copy.pool.activate,
            lambda: raw_volume(copy, "mine"),
            lambda: copy.volumes.removal.remove(copy.ledger.ready("volume")),
            lambda: copy.pool.extend(data_size=8 * GIB),
            copy.pool.trim,
            copy.pool.deactivate,
            copy.pool.destroy,
        )
        for action in actions:
            with pytest.raises(AlreadyExists, match=f"held by another store, on {store.layout.root}/data"):
                action()
    assert sizes(store) == (4 * GIB, 64 * MIB)
    again(store, oracle)
    store.close()


def test_a_ledger_from_an_old_copy_is_refused(make_store: Callable[..., Store]) -> None:
    store = make_store()
    oracle = written(store)
    store.volumes.deactivate(store.ledger.ready("volume"))
    store.pool.deactivate()
    store.ledger.close()
    ledger = store.layout.ledger
    old = ledger.read_bytes()
    for _ in range(2):
        with Store(store.layout.root) as now:
            now.pool.activate()
            now.pool.deactivate()
    new = ledger.read_bytes()
    ledger.write_bytes(old)
    with Store(store.layout.root) as now, pytest.raises(NeedsRepair, match="generation"):
        now.pool.activate()
    with Store(store.layout.root) as now, pytest.raises(NeedsRepair, match="generation"):
        raw_volume(now, "another")
    take_pool_down(store)
    store.ledger.close()
    ledger.write_bytes(new)
    again(store, oracle)
