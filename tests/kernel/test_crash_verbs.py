"""Every verb, killed with SIGKILL before and after each of its durable steps: the next command must put all right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from dmthin.kernel import mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support import thintools
from tests.support.processes import killed_at, run_until_killed
from tests.support.stores import MANY_EDGES, SMALL, check_store, kernel_state, settle, store_exists, traces, with_store


@dataclass(frozen=True)
class Verb:
    """A change to be killed: `prepare` makes what it needs, `undo` takes its result away again."""

    name: str
    run: Callable[[Store], object]
    prepare: Callable[[Store], object] = lambda store: None
    undo: Callable[[Store], object] = lambda store: None


def _drop(*names: str) -> Callable[[Store], None]:
    def drop(store: Store) -> None:
        for name in names:
            volume = store.ledger.find(name)
            if volume is not None and volume.kind is Kind.CONTAINER:
                store.containers.remove(name, force=True)
            elif volume is not None:
                store.images.remove(name)

    return drop


def _create(store: Store) -> None:
    if store.ledger.find("web") is None:
        store.containers.create("image", "web")


def _create_and_mount(store: Store) -> None:
    _create(store)
    store.containers.mount("web")


def _acquire(store: Store) -> None:
    _create(store)
    store.layers.acquire("web")


def _forget_base(store: Store) -> None:
    """Remove the base that an import with a size of its own has made, so that the next has to make it again."""
    _drop("other")(store)
    if base := store.ledger.find("@base/ext4/300M"):
        store.volumes.removal.remove(base)


def _extend(store: Store) -> object:
    now = store.pool.status()
    return store.pool.extend(data_size=now.data_size + GIB, metadata_size=now.metadata_size + 8 * MIB)


def _import_image(store: Store) -> object:
    return store.images.import_("other", store.layout.root.parent / "tree")


def _import_with_base(store: Store) -> object:
    return store.images.import_("other", store.layout.root.parent / "tree", size=300 * MIB)


def _resize(store: Store) -> object:
    return store.containers.resize("web", store.ledger.ready("web").size + 64 * MIB)


VERBS = (
    Verb("import", _import_image, undo=_drop("other")),
    Verb("import-with-base", _import_with_base, undo=_forget_base),
    Verb("create", lambda store: store.containers.create("image", "web"), undo=_drop("web")),
    Verb("create-grown", lambda store: store.containers.create("image", "web", size=GIB), undo=_drop("web")),
    Verb("mount", lambda store: store.containers.mount("web"), prepare=_create, undo=_drop("web")),
    Verb("unmount", lambda store: store.containers.unmount("web"), prepare=_create_and_mount),
    Verb("resize", _resize, prepare=_create),
    Verb("resize-mounted", _resize, prepare=_create_and_mount, undo=_drop("web")),
    Verb("commit", lambda store: store.images.commit("web", "other"), prepare=_create, undo=_drop("other")),
    Verb(
        "commit-mounted",
        lambda store: store.images.commit("web", "other"),
        prepare=_create_and_mount,
        undo=_drop("other"),
    ),
    Verb("remove", lambda store: store.containers.remove("web"), prepare=_create),
    Verb("remove-force", lambda store: store.containers.remove("web", force=True), prepare=_create_and_mount),
    Verb("remove-image", lambda store: store.images.remove("other"), prepare=lambda s: _import_once(s)),
    Verb("acquire", lambda store: store.layers.acquire("web"), prepare=_create, undo=_drop("web")),
    Verb("release", lambda store: store.layers.release("web"), prepare=_acquire),
    Verb("remove-acquired", lambda store: store.layers.remove("web"), prepare=_acquire),
    Verb("usage", lambda store: store.pool.usage()),
    Verb("trim", lambda store: store.pool.trim()),
    Verb("extend", _extend),
    Verb("activate", lambda store: store.pool.activate(), prepare=lambda store: store.pool.deactivate()),
    Verb("deactivate", lambda store: store.pool.deactivate(), prepare=lambda store: store.pool.activate()),
)


def _import_once(store: Store) -> None:
    if store.ledger.find("other") is None:
        _import_image(store)


AGAIN = ("trim", "extend", "activate", "deactivate")
"""Verbs of the pool that are killed and then asked for once more: they must finish what they began."""


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name in AGAIN], ids=lambda verb: verb.name)
def test_killed_anywhere_the_same_command_puts_all_right(store: Store, image: str, verb: Verb) -> None:
    root = store.layout.root
    edges = 0
    killed = True
    while killed:
        edges += 1
        with Store(root) as now:
            verb.prepare(now)
        store.ledger.close()
        killed = run_until_killed(edges, partial(with_store, root, verb.run))
        with Store(root) as now:
            verb.run(now)
            if verb.name == "deactivate":
                _nothing_is_up(now)
            else:
                _kernel_holds_what_the_ledger_says(now)
        assert edges < MANY_EDGES
    assert edges > 1, "the verb has no durable step"
    with Store(root) as now:
        check_store(now)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_killed_anywhere_the_next_command_puts_all_right(store: Store, image: str, verb: Verb) -> None:
    root = store.layout.root
    edges = 0
    killed = True
    while killed:
        edges += 1
        with Store(root) as now:
            verb.prepare(now)
        store.ledger.close()
        killed = run_until_killed(edges, lambda: with_store(root, verb.run))
        with Store(root) as now:
            _next_command_works(now)
            _kernel_holds_what_the_ledger_says(now)
            verb.undo(now)
        assert edges < MANY_EDGES
    print(f"{verb.name}: killed at {edges - 1} edges")
    assert edges > 1, "the verb has no durable step"
    with Store(root) as now:
        for volume in now.ledger.volumes():
            if volume.kind is Kind.CONTAINER:
                now.containers.unmount(volume.name)
        check_store(now)


def test_a_store_killed_while_it_is_made_can_be_made_again(scratch: Path) -> None:
    root = scratch / "store"
    before = kernel_state()
    edges, killed = 0, True
    while killed:
        edges += 1
        killed = run_until_killed(edges, lambda: create_store(root, SMALL).close())
        # Dead before its intent was durable, it has left nothing to finish.
        if killed and not store_exists(root):
            create_store(root, SMALL).close()
        with Store(root) as store:
            store.pool.activate()
            check_store(store)
            store.pool.destroy()
        assert kernel_state() == before
        assert not root.exists()
    assert edges > 10


def test_a_store_killed_while_it_is_destroyed_is_gone_after_the_next_command(scratch: Path) -> None:
    root = scratch / "store"
    before = kernel_state()
    edges, killed = 0, True
    while killed:
        edges += 1
        create_store(root, SMALL).close()
        killed = run_until_killed(edges, lambda: with_store(root, lambda store: store.pool.destroy()))
        if store_exists(root):
            with Store(root) as store:
                store.pool.destroy()
        else:
            create_store(root, SMALL).close()
            with Store(root) as store:
                store.pool.destroy()
        assert kernel_state() == before
        assert not root.exists()
    assert edges > 10


def _next_command_works(store: Store) -> None:
    store.containers.create("image", "probe")
    (store.containers.mount("probe") / "file").write_text("x")
    store.containers.unmount("probe")
    store.containers.remove("probe")


def _kernel_holds_what_the_ledger_says(store: Store) -> None:
    """The pool's volumes are the ledger's, all of them ready; devices, loops and mounts are those of the ready ones."""
    settle(store)
    record = store.ledger.store()
    volumes = {volume.device_id: volume for volume in store.ledger.volumes()}
    assert store.ledger.unfinished() == []
    assert thintools.ids_in(store) == set(volumes)
    known = {record.pool_name} | {record.device_name(number) for number in volumes}
    with IoctlDeviceMapper() as dm:
        devices = {device.name for device in dm.devices()}
        assert devices <= known
        assert not any(dm.info(name).suspended for name in devices)
    assert len(kernel_state()["loops"]) == 2
    places = {entry.target for entry in mount.under(store.layout.root)}
    allowed = {str(store.layout.mount_point(volume.name)) for volume in volumes.values()}
    assert places <= allowed | {str(store.layout.mounts)}


def _nothing_is_up(store: Store) -> None:
    """The kernel has nothing of the store. Whether it went down cleanly nobody knows: the next activation checks."""
    state = kernel_state()
    assert (state["devices"], state["loops"]) == ([], [])
    assert mount.under(store.layout.root) == []


@pytest.mark.parametrize("at", ["before loop detach", "after loop detach", "before ledger commit pool down"])
def test_a_repeated_deactivate_ends_what_a_killed_one_began(store: Store, at: str) -> None:
    store.ledger.close()
    assert killed_at(at, store.layout.root, lambda now: now.pool.deactivate())
    with Store(store.layout.root) as now:
        now.pool.deactivate()
    assert traces(store) == []
