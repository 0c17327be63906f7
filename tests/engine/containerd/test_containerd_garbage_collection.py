"""What containerd's garbage collector and several snapshotters mean for what else a store holds."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from dmthin.kernel import mount
from dmthin.store.state.model import SPARE_NAMES, Volume
from dmthin.store.store import Store
from dmthin.units import MIB
from enginelib.daemons import Failed, tar_of
from tests.engine.containerd.conftest import IMAGE
from tests.support.archives import chain_ids, oci_archive
from tests.support.containerd import DMTHIN, LARGE, ROOTED, SMALL, Containerd
from tests.support.snapshotters import refused

OTHER = "docker.io/library/other:1"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount at; nothing is mounted there in the end."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert not folder.is_mount()


def reference(name: str) -> dict[str, str]:
    """The labels of a Prepare for a layer that may be there already."""
    return {"containerd.io/snapshot.ref": name, **ROOTED}


def test_what_nobody_refers_to_is_removed_and_gives_its_space_back(containerd: Containerd, chain: list[str]) -> None:
    data = containerd.stores[DMTHIN] / "data"
    before = data.stat().st_blocks * 512
    containerd.load(oci_archive(OTHER, [tar_of({"large": os.urandom(40_000_000)}), tar_of({"more": b""})]))
    assert len(containerd.kept()) == len(chain) + 2
    filled = data.stat().st_blocks * 512
    assert filled - before > 40_000_000
    containerd("images", "rm", "--sync", OTHER)
    containerd.await_names(*chain)
    containerd.await_nothing_unfinished()
    assert filled - data.stat().st_blocks * 512 > 30_000_000


def volumes_of_others(store: Store) -> dict[str, Volume]:
    """The volumes without those of the containers `garbage`, and without spares, which dmthin makes when it likes."""
    volumes = {volume.name: volume for volume in store.ledger.volumes()}
    return {name: one for name, one in volumes.items() if "garbage" not in name and not name.startswith(SPARE_NAMES)}


def test_garbage_collection_leaves_alone_what_is_not_containerds(containerd: Containerd, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("of the administrator\n")
    with containerd.store() as store:
        store.images.import_("own", tree)
        store.containers.create("own", "web")
        (store.containers.mount("web") / "more").write_text("more\n")
        store.containers.unmount("web")
        before = volumes_of_others(store)
        assert any(name.startswith("@base/") for name in before)
        containerd.background(IMAGE, "garbage")
        containerd.discard("garbage")
        containerd.collect_garbage()
        assert volumes_of_others(store) == before
        web = store.containers.mount("web")
        assert sorted(path.name for path in web.iterdir()) == ["file", "more"]
        store.containers.unmount("web")
        store.containers.remove("web")
        store.images.remove("own")


def test_one_that_is_in_use_stops_no_collection_and_goes_later(
    containerd: Containerd, chain: list[str], place: Path
) -> None:
    for name in ("busy", "idle"):
        containerd.background(IMAGE, name)
        containerd.end_task(name)
    with containerd.snapshots() as client:
        (where,) = client.mounts("busy")
    mount.mount(where.source, place, where.type)
    try:
        containerd("containers", "rm", "busy", "idle")
        containerd.collect_garbage()
        containerd.await_names(*chain, "busy")
        assert f"mounted at {place}" in containerd.dmthin.log.read_text()
    finally:
        mount.unmount(place)
    containerd.collect_garbage()
    containerd.await_names(*chain)


def test_two_snapshotters_keep_their_snapshots_apart(containerd: Containerd, layers: list[bytes]) -> None:
    before = containerd.kept()
    containerd.load(oci_archive(OTHER, layers), snapshotter=LARGE)
    assert len(containerd.kept(LARGE)) == len(layers)
    assert containerd.kept() == before
    script = "df -m / | while read _ size _; do echo $size; done; cat /srv/new"
    images = {DMTHIN: IMAGE, LARGE: OTHER}
    said = {name: containerd.container(image, "sh", "-c", script, snapshotter=name) for name, image in images.items()}
    sizes = {name: int(text.split()[1]) for name, text in said.items()}
    assert sizes[DMTHIN] < 512 < 900 < sizes[LARGE]
    assert [text.splitlines()[2:] for text in said.values()] == [["of the second"]] * 2, said
    containerd("images", "rm", "--sync", OTHER)


def test_layers_that_are_there_are_handed_over(containerd: Containerd, mini: bytes, place: Path) -> None:
    """As the kubelet and nerdctl ask for it; `ctr images` does from containerd 2 on.

    An image comes to another namespace in this way, and runs there though none of its layers was unpacked for it. A
    snapshotter whose snapshots have another size does not get them.
    """
    layers = [tar_of({"first": b""}), mini, tar_of({"srv/added": b"of the second\n"})]
    chain = chain_ids(layers)
    with containerd.snapshots() as client:
        for layer, parent, name in zip(layers, ["", *chain], chain, strict=False):
            (where,) = client.prepare("extract", parent, reference(name))
            mount.mount(where.source, place, where.type)
            with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
                tar.extractall(place, filter="fully_trusted")
            mount.unmount(place)
            client.commit(name, "extract", reference(name))
    with containerd.snapshots(LARGE) as client:
        client.prepare("extract", "", reference(chain[0]))
        assert client.stat("extract").kind == "active"
        client.remove("extract")
    with containerd.store() as store, containerd.snapshots(namespace="other") as client:
        used = store.pool.status().data_used
        for parent, name in zip(["", *chain], chain, strict=False):
            with refused(StatusCode.ALREADY_EXISTS):
                client.prepare(f"extract {name}", parent, reference(name))
            assert (client.stat(name).kind, client.stat(name).parent) == ("committed", parent)
        assert store.pool.status().data_used == used
    containerd.load(oci_archive(OTHER, layers), "-n", "other", unpack=False)
    assert containerd.container(OTHER, "cat", "/srv/added", namespace="other") == "of the second\n"
    assert "committed 'other/" not in containerd.dmthin.log.read_text()
    containerd("-n", "other", "images", "rm", "--sync", OTHER)
    for namespace in ("other", "default"):
        containerd("-n", namespace, "snapshots", "--snapshotter", DMTHIN, "rm", *reversed(chain))


def test_a_full_pool_refuses_and_recovers(containerd: Containerd, layers: list[bytes]) -> None:
    """On a store of its own with XFS, of whose snapshots two of one origin are mounted side by side."""
    containerd.load(oci_archive(OTHER, layers), snapshotter=SMALL)
    for name in ("one", "two"):
        containerd.background(OTHER, name, snapshotter=SMALL)
    with containerd.store(SMALL) as store:
        pool = store.pool.status()
    count = (pool.data_size * 93 // 100 - pool.data_used) // MIB
    containerd.execute("one", f"dd if=/dev/zero of=/large bs=1M count={count}; busybox sync")
    assert containerd.execute("two", "grep -o '^[^ ]* / [^ ]*' /proc/mounts").split()[2] == "xfs"
    with pytest.raises(Failed, match=r"less than 10%.*data is free.*remove volumes"):
        containerd.container(OTHER, "true", snapshotter=SMALL)
    containerd.discard("one")
    containerd.await_names(*chain_ids(layers), "two", snapshotter=SMALL)
    assert containerd.container(OTHER, "cat", "/srv/new", snapshotter=SMALL) == "of the second\n"
    containerd.discard("two")
    containerd("images", "rm", "--sync", OTHER)
    containerd.await_names(snapshotter=SMALL)
