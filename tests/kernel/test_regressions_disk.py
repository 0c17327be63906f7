"""What a store must do to devices, processes and people beside it: full pools, raw users, foreign disks, onlookers."""

import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dmthin.errors import DmthinError, InUse, InvalidValue, Unavailable
from dmthin.kernel import block, loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.create import create_store
from dmthin.store.state.model import State
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.kernel.test_regressions import in_process
from tests.support import rigs, thintools
from tests.support.stores import fill

_NO_SPACE_TIMEOUT = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")
_WRITE_BACK = {"dirty_ratio": "90", "dirty_background_ratio": "80", "dirty_writeback_centisecs": "60000"}


# --- a pool that fills up under a commit ----------------------------------------------------------------------------


@pytest.fixture
def lazy_write_back() -> Iterator[None]:
    """What is written stays in the page cache until somebody asks for it on disk."""
    knobs = {Path("/proc/sys/vm") / name: value for name, value in _WRITE_BACK.items()}
    before = {knob: knob.read_text() for knob in (*knobs, _NO_SPACE_TIMEOUT)}
    for knob, value in knobs.items():
        knob.write_text(value)
    yield
    for knob, value in before.items():
        knob.write_text(value)


@pytest.mark.usefixtures("lazy_write_back")
@pytest.mark.parametrize("seconds", [1, 60])
def test_a_pool_that_fills_up_under_a_commit_can_be_extended(
    make_store: Callable[..., Store], tree: Path, seconds: int
) -> None:
    _NO_SPACE_TIMEOUT.write_text(str(seconds))
    store = make_store("dm.loopdatasize=128M", "dm.loopmetadatasize=16M", "dm.basesize=64M", "dm.min_free_space=0%")
    store.images.import_("image", tree)
    store.containers.create("image", "web", size=600 * MIB)
    fill(store.containers.mount("web") / "big", 150 * MIB)
    store.close()
    commit = dmthin(store, "container", "commit", "web", "snap")
    _await_full(store)
    begun = time.monotonic()
    extend = dmthin(store, "pool", "extend", "--data-size", "1G")
    words = extend.communicate(timeout=150)[0]
    took = time.monotonic() - begun
    ended = commit.communicate(timeout=150)[0]
    assert extend.returncode == 0, words
    assert took < 45, f"the extension took {took:.0f} s"
    with Store(store.layout.root) as now:
        if commit.returncode == 0:
            assert now.ledger.ready("snap").size == 600 * MIB
        else:
            assert re.fullmatch(r"dmthin: .+\n", ended), ended
            assert now.ledger.find("snap") is None
        assert seconds == 1 or commit.returncode == 0, ended
        now.containers.create("image", "after")
        now.images.commit("after", "later")


@pytest.mark.usefixtures("lazy_write_back")
def test_a_commit_killed_on_a_full_pool_holds_nobody_up(make_store: Callable[..., Store], tree: Path) -> None:
    _NO_SPACE_TIMEOUT.write_text("60")
    store = make_store("dm.loopdatasize=128M", "dm.loopmetadatasize=16M", "dm.basesize=64M", "dm.min_free_space=0%")
    store.images.import_("image", tree)
    store.containers.create("image", "web", size=600 * MIB)
    fill(store.containers.mount("web") / "big", 150 * MIB)
    store.close()
    commit = dmthin(store, "container", "commit", "web", "snap")
    _await_full(store)
    commit.kill()
    begun = time.monotonic()
    extend = dmthin(store, "pool", "extend", "--data-size", "1G")
    words = extend.communicate(timeout=150)[0]
    took = time.monotonic() - begun
    commit.communicate(timeout=150)
    assert extend.returncode == 0, words
    assert took < 45, f"the extension took {took:.0f} s"


def dmthin(store: Store, *arguments: str) -> subprocess.Popen[str]:
    """The program, started on a store."""
    return subprocess.Popen(
        [sys.executable, "-m", "dmthin", "--root", str(store.layout.root), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _await_full(store: Store) -> None:
    with Store(store.layout.root) as now:
        for _ in range(300):
            if now.pool.status().mode == "out_of_data_space":
                return
            time.sleep(0.1)
    raise AssertionError("the pool does not fill up")


# --- users that no mount shows --------------------------------------------------------------------------------------


def test_a_container_whose_device_is_open_is_not_resized(store: Store, image: str) -> None:
    container = store.containers.create(image, "machine")
    info = store.volumes.info(container)
    assert info is not None
    ready, go = os.pipe()

    def hold() -> None:
        with block.opened(Path(info.node), os.O_RDWR):
            os.write(go, b"x")
            time.sleep(600)

    with rigs.child(hold) as pid:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(InUse, match=rf"pid {pid}\b"):
            store.containers.resize("machine", 512 * MIB)
        now = store.ledger.ready("machine")
        assert (now.size, now.state) == (256 * MIB, State.READY)
        assert mount.of_device(info.dev) == []
        assert block.size(Path(info.node)) == 256 * MIB
    os.close(ready)
    os.close(go)
    assert store.containers.resize("machine", 512 * MIB).size == 512 * MIB


def test_an_import_can_be_seen_by_root_alone(make_store: Callable[..., Store], scratch: Path) -> None:
    root = scratch / "store"
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    store = make_store()
    source = scratch / "slow.tar"
    os.mkfifo(source)
    failures: list[BaseException] = []

    def import_() -> None:
        try:
            store.images.import_("image", source)
        except BaseException as error:
            failures.append(error)

    importer = threading.Thread(target=import_)
    importer.start()
    with source.open("wb", buffering=0) as pipe:
        archive = _archive()
        pipe.write(archive[:4096])
        entry = _await_work_mount(root)
        outcome = rigs.outcome(in_process(lambda: _look_as_nobody(Path(entry.target))))
        pipe.write(archive[4096:])
    importer.join()
    assert failures == []
    assert outcome == 13, "an unprivileged user lists the folder that an image is unpacked into"
    assert {"nosuid", "nodev"} <= set(entry.options.split(","))


def _archive() -> bytes:
    """A tar of some size: a folder anyone may enter, and a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo(".")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        file = tarfile.TarInfo("file")
        file.size, file.mode = MIB, 0o4755
        archive.addfile(file, io.BytesIO(bytes(MIB)))
    return buffer.getvalue()


def _await_work_mount(root: Path) -> mount.Mount:
    for _ in range(600):
        # The base is made, and mounted, before the image.
        if entries := [entry for entry in mount.under(root) if entry.target == str(root / "work/1")]:
            return entries[0]
        time.sleep(0.05)
    raise AssertionError("no image is being filled")


def _look_as_nobody(folder: Path) -> None:
    """End with 13 (EACCES) if an unprivileged user cannot list `folder`. The folders above the store do not matter."""
    os.chdir(folder.parents[1])
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        os.listdir("/")
        os.listdir(f"work/{folder.name}")
    except OSError as error:
        os._exit(error.errno or 255)


# --- devices that are not the store's -------------------------------------------------------------------------------


def test_destroy_leaves_a_foreign_device_alone(scratch: Path) -> None:
    disks = {name: _loop(scratch / name, size) for name, size in _DISKS.items()}
    link = scratch / "link"
    link.symlink_to(disks["metadata"].node)
    try:
        options = (f"dm.datadev={disks['data'].node}", f"dm.metadatadev={link}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            store.pool.deactivate()
            stranger = Path(disks["stranger"].node)
            subprocess.run(["mkfs.ext4", "-q", str(stranger)], check=True)
            link.unlink()
            link.symlink_to(stranger)
            with suppress(DmthinError):
                store.pool.destroy()
            found = block.signature(stranger)
            link.unlink()
            link.symlink_to(disks["metadata"].node)
            if store.layout.ledger.exists():
                store.pool.destroy()
        assert found == "ext4"
    finally:
        for disk in disks.values():
            disk.detach()


_DISKS = {"data": GIB, "metadata": 64 * MIB, "stranger": 64 * MIB}


def _loop(path: Path, size: int) -> loop.LoopDevice:
    block.make_sparse(path, size)
    return loop.attach(path)


def test_a_store_on_a_pool_that_is_down_is_not_destroyed(dm: IoctlDeviceMapper, scratch: Path, tree: Path) -> None:
    with rigs.pool(dm, scratch, data_size=GIB, metadata_size=16 * MIB) as rig:
        options = (f"dm.thinpooldev={rig.pool.name}", "dm.basesize=64M")
        with create_store(scratch / "store", options) as store:
            store.images.import_("image", tree)
            held = thintools.ids_in(store)
            store.pool.deactivate()
            rig.down()
            with pytest.raises(Unavailable, match=rig.pool.name):
                store.pool.destroy()
            assert store.ledger.ready("image")
            rig.up()
            assert thintools.ids_in(store) == held
            store.containers.create("image", "web")
            store.pool.destroy()
        assert not (scratch / "store").exists()
        assert rig.pool.status().transaction_id == 0


# --- file systems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("-E", "stride=16"),
        ("-Estride=16",),
        ("-E", "lazy_itable_init=1,lazy_journal_init=1"),
        ("-Elazy_itable_init=1",),
        ("-qE", "lazy_journal_init=1"),
    ],
    ids=" ".join,
)
def test_mkfs_arguments_leave_no_table_unwritten(
    make_store: Callable[..., Store], tree: Path, arguments: tuple[str, ...]
) -> None:
    try:
        store = make_store(*(f"dm.mkfsarg={argument}" for argument in arguments))
    except InvalidValue as refused:
        assert re.search(r"dm\.mkfsarg", str(refused))
        return
    plain = make_store(name="plain")
    used = []
    for each in (store, plain):
        each.images.import_("image", tree)
        used.append(each.pool.status().data_used)
    assert used[0] >= used[1] * 0.95, "tables of the file system were not written"
