"""What a store must not lose and must not be stuck in: old ledgers, copies, damaged pools, killed processes."""

import os
import shutil
import sqlite3
import subprocess
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dmthin import failpoint
from dmthin.errors import AlreadyExists, DmthinError, InvalidValue, NeedsRepair, NotFound
from dmthin.kernel import mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolMode
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import GIB, MIB, TIB
from tests.kernel.test_concurrency import in_processes
from tests.support import rigs, thintools
from tests.support.stores import SMALL, kernel_state

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


# --- a ledger that is not the pool's --------------------------------------------------------------------------------


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
            now.lifecycle.pool(record).delete(foreign)
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


def test_a_pool_that_needs_a_check_goes_down(dm: IoctlDeviceMapper, scratch: Path) -> None:
    with rigs.disk(dm, scratch / "metadata-disk", 16 * MIB) as disk:
        before = kernel_state()
        options = ("dm.loopdatasize=1G", f"dm.metadatadev={disk.node}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            disk.break_writes()
            with pytest.raises(DmthinError):
                store.lifecycle.pool(store.ledger.store()).create_thin(1000)
            disk.heal()
            status = store.pool.status().status
            assert status is not None and status.needs_check
            try:
                store.pool.deactivate()
                assert kernel_state() == before
                with suppress(DmthinError):
                    store.pool.activate()
                store.pool.deactivate()
                assert kernel_state() == before
            finally:
                subprocess.run(["thin_check", "-q", "--clear-needs-check-flag", str(disk.node)], check=False)
                store.pool.destroy()


# --- a copy of a store ----------------------------------------------------------------------------------------------


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


# --- growth ---------------------------------------------------------------------------------------------------------


def test_data_beyond_what_the_metadata_maps_is_refused(make_store: Callable[..., Store], tree: Path) -> None:
    store = make_store("dm.loopmetadatasize=8M", "dm.basesize=64M")
    store.images.import_("image", tree)
    with pytest.raises(InvalidValue, match="metadata"):
        store.pool.extend(data_size=4 * TIB)
    report = store.pool.status()
    assert report.status is not None
    assert (report.status.mode, report.status.needs_check) == (PoolMode.READ_WRITE, False)
    assert report.data_size == 4 * GIB
    store.containers.create("image", "web")
    store.pool.extend(data_size=8 * GIB)
    assert store.pool.status().data_size == 8 * GIB


# --- processes that were killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["nothing", "a database without tables"])
def test_a_ledger_that_was_never_finished_is_made_anew(
    make_store: Callable[..., Store], scratch: Path, content: str
) -> None:
    root = scratch / "store"
    root.mkdir(mode=0o700)
    if content == "nothing":
        (root / "ledger.db").touch()
    else:
        with closing(sqlite3.connect(root / "ledger.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        assert (root / "ledger.db").stat().st_size == 4096
    store = make_store()
    assert store.pool.status().active


@pytest.mark.parametrize("at", ["before loop detach", "after loop detach", "before ledger pool down"])
def test_a_repeated_deactivate_ends_what_a_killed_one_began(store: Store, at: str) -> None:
    store.ledger.close()
    assert killed_at(at, store.layout.root, lambda now: now.pool.deactivate())
    with Store(store.layout.root) as now:
        now.pool.deactivate()
    assert traces(store) == []


# --- bases ----------------------------------------------------------------------------------------------------------


def test_a_base_goes_with_its_last_image(store: Store, tree: Path) -> None:
    empty = store.pool.status().data_used
    store.images.import_("one", tree)
    store.images.import_("two", tree)
    store.images.import_("large", tree, size=300 * MIB)
    store.containers.create("one", "web")
    store.images.remove("two")
    assert bases(store) == ["@base/ext4/256M", "@base/ext4/300M"]
    store.images.remove("large")
    assert bases(store) == ["@base/ext4/256M"]
    store.images.commit("web", "three")
    store.containers.remove("web")
    left = [name for name in ("three", "one") if store.ledger.find(name)]
    for name in left:
        store.images.remove(name)
    assert store.ledger.volumes() == []
    assert store.pool.status().data_used == empty
    store.images.import_("again", tree)
    assert bases(store) == ["@base/ext4/256M"]


def test_a_base_that_goes_while_another_wants_it(store: Store, tree: Path) -> None:
    root = store.layout.root
    store.ledger.close()

    def coming_and_going(number: int) -> Callable[[Store], None]:
        def work(store: Store) -> None:
            for turn in range(3):
                store.images.import_(f"i{number}-{turn}", tree)
                store.images.remove(f"i{number}-{turn}")

        return work

    in_processes(root, *(coming_and_going(number) for number in range(3)))
    assert store.ledger.volumes() == []
    assert thintools.ids_in(store) == set()


def bases(store: Store) -> list[str]:
    return [volume.name for volume in store.ledger.volumes() if volume.kind == "base"]


# --- many at once ---------------------------------------------------------------------------------------------------


def test_one_root_has_one_maker(scratch: Path) -> None:
    for turn in range(4):
        root = scratch / f"store-{turn}"
        pids = [in_process(partial(_make, root)) for _ in range(3)]
        outcomes = sorted(rigs.outcome(pid) for pid in pids)
        with Store(root) as store:
            active = store.pool.status().active
            store.pool.destroy()
        assert outcomes == [0, 4, 4]
        assert active
        assert not root.exists()


def _make(root: Path) -> None:
    try:
        create_store(root, SMALL).close()
    except AlreadyExists:
        os._exit(4)


# --- helpers --------------------------------------------------------------------------------------------------------


def traces(store: Store) -> list[str]:
    """What the kernel still has of a store: devices, loops, mounts."""
    record = store.ledger.store()
    devices = [name for name in kernel_state()["devices"] if name.startswith(record.prefix)]
    backings = (store.layout.data(record), store.layout.metadata(record))
    loops = [f"loop of {backing.path}" for backing in backings if backing.attached_number()]
    return devices + loops + [entry.target for entry in mount.under(store.layout.root)]


def killed_at(edge: str, root: Path, action: Callable[[Store], object]) -> bool:
    """Run a verb in a process that is killed at the first edge whose name begins so; whether it was."""

    def run() -> None:
        failpoint.arm(0, lambda name: os.kill(os.getpid(), 9) if name.startswith(edge) else None)
        with Store(root) as store:
            action(store)

    return rigs.outcome(in_process(run)) == -9


def in_process(action: Callable[[], object]) -> int:
    """Start a process that does something once; its pid. It must be waited for."""
    pid = os.fork()
    if not pid:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid
