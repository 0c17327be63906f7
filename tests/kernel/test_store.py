"""The store's verbs on a real pool."""

import io
import os
import signal
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import AlreadyExists, InUse, InvalidValue, NotFound
from dmthin.kernel import block, mount
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.state.model import State
from dmthin.store.store import Store
from dmthin.units import GIB, MIB, TIB
from enginelib.waiting import until
from tests.support import processes, thintools
from tests.support.processes import start
from tests.support.stores import fill


def test_a_container_is_a_writable_copy_of_its_image(store: Store, image: str) -> None:
    store.containers.create(image, "one")
    store.containers.create(image, "two")
    one, two = store.containers.mount("one"), store.containers.mount("two")
    (one / "etc/motd").write_text("changed\n")
    assert (two / "etc/motd").read_text() == "hello\n"
    assert sorted(path.name for path in two.iterdir()) == ["empty", "etc"]
    assert store.containers.unmount("one")
    assert not store.containers.unmount("one")


def test_names_are_unique_and_checked(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    with pytest.raises(AlreadyExists, match="'web' is in use by a container"):
        store.containers.create(image, "web")
    with pytest.raises(AlreadyExists, match="'image' is in use by an image"):
        store.containers.create(image, "image")
    with pytest.raises(NotFound, match="no image 'nothing'"):
        store.containers.create("nothing", "new")
    for name in ("", ".", "a/b", "-x", "x" * 129, "ä"):
        with pytest.raises(InvalidValue):
            store.containers.create(image, name)


def test_a_volume_whose_device_cannot_be_made_does_not_stay(store: Store, image: str, dm: IoctlDeviceMapper) -> None:
    """Its record is durable before its device is made, whose name somebody else has."""
    ((number,),) = store.ledger.rows("SELECT next_device_id FROM store")
    assert isinstance(number, int)
    name = store.ledger.store().device_name(number)
    dm.create(name, "SOMEBODY-1", [Target(0, 8, "zero", "")])
    try:
        with pytest.raises(AlreadyExists, match=f"{name} is held by another store"):
            store.containers.create(image, "web")
        assert store.ledger.find("web") is None
        assert [target.type for target in dm.table(name)] == ["zero"]
    finally:
        dm.remove(name)
    store.containers.create(image, "web")
    assert store.ledger.unfinished() == []
    assert thintools.ids_in(store) == {volume.device_id for volume in store.ledger.volumes()}


def test_what_is_in_use_is_not_removed(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    with pytest.raises(InUse, match="has children: web"):
        store.images.remove(image)
    place = store.containers.mount("web")
    with (place / "file").open("w"), pytest.raises(InUse, match=r"web is in use by .*pid \d+.*file open"):
        store.containers.unmount("web")
    with pytest.raises(InUse, match="is mounted at"):
        store.containers.remove("web")
    store.containers.unmount("web")
    store.containers.remove("web")
    store.images.remove(image)


def test_force_removes_a_busy_container_once_its_last_user_ends(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    place = store.containers.mount("web")
    with (place / "file").open("w") as file:
        store.containers.remove("web", force=True)
        file.write("still here")
        store.containers.create(image, "web")
        assert [volume.name for volume in store.ledger.unfinished()] == ["@removing/2"]
    store.containers.create(image, "other")
    assert store.ledger.unfinished() == []


def test_sizes_only_grow(store: Store, image: str) -> None:
    with pytest.raises(InvalidValue, match="less than the 256M"):
        store.containers.create(image, "small", size=128 << 20)
    store.containers.create(image, "large", size=512 << 20)
    place = store.containers.mount("large")
    fill(place / "big", 300 * MIB)
    store.containers.resize("large", 1 << 30)
    fill(place / "bigger", 400 * MIB)
    with pytest.raises(InvalidValue, match="cannot shrink"):
        store.containers.resize("large", 512 << 20)


def test_the_size_is_a_cap_with_a_clean_error(store: Store, image: str) -> None:
    store.containers.create(image, "capped")
    place = store.containers.mount("capped")
    with pytest.raises(OSError, match="No space left"):
        fill(place / "big", 300 * MIB)


def test_commit_of_a_mounted_container(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    place = store.containers.mount("web")
    (place / "new").write_text("committed")
    store.images.commit("web", "web:2")
    (place / "new").write_text("later")
    store.containers.create("web:2", "third")
    assert (store.containers.mount("third") / "new").read_text() == "committed"
    parent = store.ledger.ready("web:2").parent
    assert parent == store.ledger.ready(image).device_id


def test_the_pool_goes_down_and_up_with_its_content(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    (store.containers.mount("web") / "kept").write_text("x")
    with pytest.raises(InUse, match="container web is in use"):
        store.pool.deactivate()
    store.containers.unmount("web")
    store.pool.deactivate()
    assert store.pool.status().mode == "inactive"
    assert (store.containers.mount("web") / "kept").read_text() == "x"


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_both_file_systems(make_store: Callable[..., Store], tree: Path, kind: str) -> None:
    store = make_store(f"dm.fs={kind}", "dm.basesize=512M")
    store.images.import_("image", tree)
    store.containers.create("image", "one", size=1 << 30)
    store.containers.create("image", "two")
    one, two = store.containers.mount("one"), store.containers.mount("two")
    fill(one / "big", 600 * MIB)
    assert (two / "etc/motd").read_text() == "hello\n"
    store.containers.resize("one", 2 << 30)
    fill(one / "bigger", 600 * MIB)


def test_a_container_whose_device_is_open_is_not_resized(store: Store, image: str) -> None:
    container = store.containers.create(image, "machine")
    info = store.volumes.info(container)
    assert info is not None
    ready, go = os.pipe()

    def hold() -> None:
        with block.opened(Path(info.node), os.O_RDWR):
            os.write(go, b"x")
            signal.pause()

    with processes.child(hold) as pid:
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


def test_sizes_are_rounded_up_to_blocks_of_the_file_system(make_store: Callable[..., Store], tree: Path) -> None:
    store = make_store("dm.basesize=300000001", "dm.loopdatasize=1000000001", "dm.loopmetadatasize=16777217")
    report, record = store.pool.status(), store.ledger.store()
    assert (report.data_size, report.metadata_size) == (1_000_013_824, 16 * MIB + 4096)
    assert store.layout.data(record).size() == report.data_size
    assert store.images.import_("image", tree).size == 300_003_328
    assert store.images.import_("larger", tree, size=400_000_000).size == 400_003_072
    for name, size, rounded in (("a", 500_000_000, 500_002_816), ("b", 1_073_741_825, GIB + 4096)):
        made = store.containers.create("image", name, size=size)
        info = store.volumes.info(made)
        assert info is not None
        assert (made.size, block.size(Path(info.node))) == (rounded, rounded)
    assert store.containers.resize("a", 1_000_000_000).size == 1_000_001_536
    assert store.containers.resize("a", 999_999_999).size == 1_000_001_536
    assert store.pool.extend(data_size=1_100_000_001).data_size == 1_100_021_760


def test_a_size_that_the_file_system_cannot_have(store: Store, image: str) -> None:
    store.containers.create(image, "web")
    before = store.ledger.volumes()
    with pytest.raises(InvalidValue, match="too large for ext4"):
        store.containers.resize("web", 17 * TIB)
    with pytest.raises(InvalidValue, match="too large for ext4"):
        store.containers.create(image, "other", size=17 * TIB)
    assert store.ledger.volumes() == before


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
        outcome = processes.outcome(start(lambda: _look_as_nobody(Path(entry.target))))
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
    found: list[mount.Mount] = []

    def is_mounted() -> bool:
        # The base is made, and mounted, before the image.
        found[:] = [entry for entry in mount.under(root) if entry.target == str(root / "work/1")]
        return bool(found)

    until(is_mounted)
    return found[0]


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
