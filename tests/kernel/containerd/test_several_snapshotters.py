"""Several snapshotters in one daemon: whose snapshots each sees, how large they are, and which layers they lend."""

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dmthin.store.create import create_store
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.units import MIB
from enginelib.snapshots import Mount, Snapshots
from tests.support.snapshotters import (
    OPTIONS,
    Daemon,
    collect_garbage,
    crash,
    device_of,
    layer,
    mounted,
    refused,
    serving,
)
from tests.support.stores import scratch_folder

EXISTS = grpc.StatusCode.ALREADY_EXISTS
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

NAMES = ("dmthin", "twin", "big", "other", "xfs")
REFERENCE = "containerd.io/snapshot.ref"
MAX_SIZE = "containerd.io/snapshot/max-size"
OWN_SIZE = "containerd.io/snapshot/dmthin.size"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """`dmthin`, `twin` and `big` share a store, `other` has its own, and so has `xfs`, of another file system."""
    with scratch_folder() as folder:
        other, xfs = folder / "other", folder / "xfs"
        create_store(xfs, (*OPTIONS, "dm.fs=xfs")).close()
        names = ("dmthin", "twin", "big,size=384M", f"other={other},size=352M", f"xfs={xfs}")
        with serving(folder, *names, stores=(other, xfs)) as daemon:
            yield daemon


@pytest.fixture
def clients(daemon: Daemon) -> Iterator[dict[str, Snapshots]]:
    clients = {name: daemon.client(name) for name in NAMES}
    yield clients
    for client in clients.values():
        collect_garbage(client)
        client.close()


@pytest.fixture
def snapshots(clients: dict[str, Snapshots]) -> Snapshots:
    return clients["dmthin"]


def size_of(mounts: tuple[Mount, ...], place: Path) -> int:
    """The bytes of a file system, its own tables left out."""
    with mounted(mounts, place) as root:
        figures = os.statvfs(root)
        return figures.f_blocks * figures.f_frsize


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_shows_its_own_snapshots_only(clients: dict[str, Snapshots], place: Path) -> None:
    for name, client in clients.items():
        client.prepare("key", labels={"of": name})
        client.commit("base", "key", {"of": name})
        client.prepare("key", "base", {"of": name})
    clients["dmthin"].prepare("only-here")
    clients["dmthin"].commit("only-here-too", "only-here")
    for name, client in clients.items():
        found = {(info.name, info.parent, info.labels.get("of")) for info in client.list()}
        wanted = {("base", "", name), ("key", "base", name)}
        assert found == wanted | ({("only-here-too", "", None)} if name == "dmthin" else set())
    with refused(MISSING, "only-here-too"):
        clients["big"].prepare("child", "only-here-too")
    clients["big"].remove("key")
    clients["big"].remove("base")
    assert len(clients["dmthin"].list()) == 3


def test_what_containerd_did_not_make_is_hidden_from_it(daemon: Daemon, snapshots: Snapshots, place: Path) -> None:
    """Its garbage collector would remove whatever a List shows and it does not know."""
    snapshots.prepare("key")
    with Store(daemon.root) as store:
        store.layers.create_first("docker-layer", Kind.IMAGE)
        store.containers.create("docker-layer", "web")
        base = next(volume.name for volume in store.ledger.volumes() if volume.kind is Kind.BASE)
        before = {volume.name for volume in store.ledger.volumes()}
        assert [info.name for info in snapshots.list()] == ["key"]
        for name in ("docker-layer", "web", base):
            for call in (snapshots.stat, snapshots.remove, snapshots.usage, snapshots.mounts):
                with refused(MISSING, name):
                    call(name)
            with refused(MISSING, name):
                snapshots.prepare("child", name)
            snapshots.prepare(name)
        collect_garbage(snapshots)
        left = {volume.name for volume in store.ledger.volumes()}
        assert left == before - {"@snapshot/dmthin/key"}
        store.containers.remove("web")
        store.images.remove("docker-layer")


def test_a_snapshotter_that_is_not_served(daemon: Daemon, clients: dict[str, Snapshots]) -> None:
    with daemon.client("nobody") as nobody:
        calls = (
            lambda: nobody.prepare("a"),
            lambda: nobody.view("a"),
            lambda: nobody.mounts("a"),
            lambda: nobody.commit("b", "a"),
            lambda: nobody.remove("a"),
            lambda: nobody.stat("a"),
            lambda: nobody.update("a"),
            lambda: nobody.list(),
            lambda: nobody.usage("a"),
            lambda: nobody.cleanup(),
        )
        for call in calls:
            with refused(INVALID, "nobody.*dmthin, twin, big, other, xfs"):
                call()


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_each_name_has_a_size_of_its_own(clients: dict[str, Snapshots], place: Path) -> None:
    sizes = {name: size_of(client.prepare("key"), place) // MIB for name, client in clients.items()}
    assert 280 < sizes["dmthin"] < 310 < sizes["other"] < 340 < sizes["big"] < 384
    assert 240 < sizes["xfs"] <= 320  # of which XFS has 64M for its log


@pytest.mark.parametrize("name", ["dmthin", "xfs"])
def test_a_label_gives_a_size(clients: dict[str, Snapshots], name: str, place: Path) -> None:
    client = clients[name]
    assert 320 * MIB < size_of(client.prepare("a", "", {MAX_SIZE: str(400 * MIB - 1)}), place) <= 400 * MIB
    with mounted(client.mounts("a"), place) as root:
        (root / "file").write_text("of the parent")
    client.commit("base", "a")
    assert 320 * MIB < size_of(client.prepare("as-large", "base"), place) <= 400 * MIB
    grown = client.prepare("grown", "base", {OWN_SIZE: "512M", MAX_SIZE: str(416 * MIB)})
    assert client.mounts("grown") == grown
    assert 432 * MIB < size_of(grown, place) <= 512 * MIB
    view = client.view("view", "base", {OWN_SIZE: "512M"})
    assert size_of(view, place) == size_of(grown, place)
    with device_of(view).open("r+b", buffering=0) as device, pytest.raises(OSError, match="ermitted"):
        device.write(bytes(4096))
    for mounts in (grown, view):
        with mounted(mounts, place) as root:
            assert (root / "file").read_text() == "of the parent"
            assert [path.name for path in root.iterdir()] == ["file"]
    assert client.stat("grown").labels == {OWN_SIZE: "512M", MAX_SIZE: str(416 * MIB)}


@pytest.mark.parametrize(
    ("label", "text", "words"),
    [
        (MAX_SIZE, "", "number of bytes"),
        (MAX_SIZE, "400M", "number of bytes"),
        (MAX_SIZE, "-1", "number of bytes"),
        (MAX_SIZE, "4e8", "number of bytes"),
        (MAX_SIZE, "\N{SUPERSCRIPT TWO}", "number of bytes"),
        (MAX_SIZE, "0", "not a positive size"),
        (MAX_SIZE, "1", "too small"),
        (MAX_SIZE, "9" * 30, "more than any"),
        (OWN_SIZE, "", "size"),
        (OWN_SIZE, "large", "large"),
        (OWN_SIZE, "400MM", "400MM"),
        (OWN_SIZE, "-400M", "-400M"),
        (OWN_SIZE, "17T", "too large"),
        (OWN_SIZE, "1M", "too small"),
    ],
)
def test_a_label_that_is_no_size_is_refused(snapshots: Snapshots, label: str, text: str, words: str) -> None:
    for make in (snapshots.prepare, snapshots.view):
        with refused(INVALID, words):
            make("key", "", {label: text})
    assert snapshots.list() == ()


def test_a_child_is_never_smaller_than_its_parent(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    snapshots.commit("base", "a")
    for make in (snapshots.prepare, snapshots.view):
        with refused(INVALID, "less than the 320M"):
            make("key", "base", {MAX_SIZE: str(319 * MIB)})
        make("key", "base", {MAX_SIZE: str(320 * MIB)})
        snapshots.remove("key")


# --- file systems ---------------------------------------------------------------------------------------------------


def test_xfs_is_mounted_beside_its_relatives(clients: dict[str, Snapshots], scratch: Path) -> None:
    xfs = clients["xfs"]
    layer(xfs, "base", "", scratch / "mnt", file="of the base")
    active, view = xfs.prepare("active", "base"), xfs.view("view", "base")
    assert (active[0].type, active[0].options) == ("xfs", ("nouuid",))
    assert (view[0].type, set(view[0].options)) == ("xfs", {"ro", "nouuid"})
    with mounted(active, scratch / "active") as one, mounted(view, scratch / "view") as two:
        (one / "file").write_text("mine")
        assert (two / "file").read_text() == "of the base"
        with pytest.raises(OSError, match="Read-only file system"):
            (two / "new").touch()


@pytest.mark.parametrize("name", ["dmthin", "xfs"])
def test_a_view_of_what_a_crash_has_left(clients: dict[str, Snapshots], name: str, place: Path) -> None:
    """A device that takes no write cannot replay a journal."""
    client = clients[name]
    with mounted(client.prepare("a"), place) as root:
        (root / "file").write_text("in the journal")
        with (root / "file").open() as file:
            os.fsync(file)
        crash(root)
    client.commit("base", "a")
    for _ in range(2):
        with mounted(client.view("view", "base"), place) as root:
            assert (root / "file").read_text() == "in the journal"
        client.remove("view")
    with mounted(client.prepare("b", "base"), place) as root:
        assert (root / "file").read_text() == "in the journal"


# --- layers that are here already -----------------------------------------------------------------------------------


def held(client: Snapshots, reference: str, parent: str) -> list[str]:
    """What containerd looks for once it hears that a layer is here."""
    found = client.list(f'labels."{REFERENCE}"=="{reference}",parent=="{parent}"')
    return [info.name for info in found if info.kind == "committed"]


def unpack(client: Snapshots, reference: str, parent: str, place: Path, **files: str) -> str:
    """Unpack a layer that is not here, under its reference; its name."""
    labels = {REFERENCE: reference}
    with mounted(client.prepare(f"extract-{reference}", parent, labels), place) as root:
        for path, text in files.items():
            (root / path).write_text(text)
    client.commit(f"name-of-{reference}", f"extract-{reference}", labels)
    return f"name-of-{reference}"


def test_a_layer_that_is_here_is_not_fetched_again(snapshots: Snapshots, place: Path) -> None:
    one = unpack(snapshots, "sha256:1", "", place, one="1")
    two = unpack(snapshots, "sha256:2", one, place, two="2")
    before = snapshots.list()
    with refused(EXISTS, "sha256:1"):
        snapshots.prepare("again", "", {REFERENCE: "sha256:1"})
    with refused(EXISTS, "sha256:2"):
        snapshots.prepare("again", one, {REFERENCE: "sha256:2"})
    assert (held(snapshots, "sha256:1", ""), held(snapshots, "sha256:2", one)) == ([one], [two])
    assert snapshots.list() == before


def test_a_layer_of_another_name_is_lent(clients: dict[str, Snapshots], place: Path) -> None:
    ours, twin = clients["dmthin"], clients["twin"]
    one = unpack(ours, "sha256:1", "", place, one="1")
    unpack(ours, "sha256:2", one, place, two="2")
    assert twin.list() == ()
    with refused(EXISTS, "sha256:1"):
        twin.prepare("extract 1", "", {REFERENCE: "sha256:1"})
    (below,) = held(twin, "sha256:1", "")
    with refused(EXISTS, "sha256:2"):
        twin.prepare("extract 2", below, {REFERENCE: "sha256:2"})
    (upper,) = held(twin, "sha256:2", below)
    with refused(EXISTS):
        twin.prepare("extract 3", below, {REFERENCE: "sha256:2"})
    assert held(twin, "sha256:2", below) == [upper], "what is here for this name is not copied again"
    assert {info.kind for info in twin.list()} == {"committed"}
    collect_garbage(ours)
    with mounted(twin.prepare("key", upper), place) as root:
        assert ((root / "one").read_text(), (root / "two").read_text()) == ("1", "2")
    assert twin.usage(upper).size > 0
    collect_garbage(twin, {below})
    assert [info.name for info in twin.list()] == [below]


def test_what_is_lent_and_not_taken_is_collected(clients: dict[str, Snapshots], place: Path) -> None:
    ours, twin = clients["dmthin"], clients["twin"]
    one = unpack(ours, "sha256:1", "", place, one="1")
    for _ in range(2):
        with refused(EXISTS):
            twin.prepare("extract", "", {REFERENCE: "sha256:1"})
        collect_garbage(twin)
        assert twin.list() == ()
    with mounted(ours.view("view", one), place) as root:
        assert (root / "one").read_text() == "1"


def test_a_layer_of_another_size_is_not_lent(clients: dict[str, Snapshots], place: Path) -> None:
    """What is made on it would have that size too, and not the one that is usual under this name."""
    unpack(clients["dmthin"], "sha256:1", "", place, one="1")
    clients["big"].prepare("extract", "", {REFERENCE: "sha256:1"})
    assert [info.name for info in clients["big"].list()] == ["extract"]


def test_only_committed_layers_of_the_store_are_lent(clients: dict[str, Snapshots], place: Path) -> None:
    ours, other = clients["dmthin"], clients["other"]
    labels = {REFERENCE: "sha256:1"}
    ours.prepare("first", "", labels)
    ours.prepare("second", "", labels)
    ours.commit("name", "first", labels)
    other.prepare("key", "", labels)
    ours.view("view", "", labels)
    ours.prepare("without", "", {})
    ours.prepare("of-another-layer", "", {REFERENCE: "sha256:2"})
    with refused(MISSING, "nothing"):
        clients["big"].prepare("key", "nothing", labels)
    clients["big"].prepare("larger", "", labels | {OWN_SIZE: "400M"})
    assert {info.name for info in clients["big"].list()} == {"larger"}
    ours.commit("forgets", "second")
    assert held(ours, "sha256:1", "") == ["name"]
