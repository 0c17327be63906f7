"""The store's verbs on a real pool."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import AlreadyExists, InUse, InvalidValue, NotFound
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.store import Store
from dmthin.units import MIB
from tests.support import thintools
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
