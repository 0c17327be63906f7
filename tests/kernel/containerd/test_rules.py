"""containerd's rules for a snapshotter, asked over its socket: keys, parents, times, labels, mounts, content."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from dmthin.errors import NotPermitted
from dmthin.kernel import mount
from dmthin.units import MIB
from enginelib.snapshots import UNKNOWN_FIELDS, YEAR_ONE, Snapshots
from tests.support.snapshotters import Daemon, device_of, layer, mounted, refused

EXISTS = grpc.StatusCode.ALREADY_EXISTS
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

STRANGE_KEYS = (
    "extract-123456789-aBcD sha256:0123456789abcdef",
    "default/3/k8s.io/a b\tc",
    "../../../etc/passwd",
    "/",
    "@base/ext4/320M",
    "@removing/1",
    "ключ-\N{GRINNING FACE}-名前",
    'quote"\\back\nline',
    "long/" + "k" * 4000,
    "\N{GREEK SMALL LETTER ALPHA}" * 2000,
)


# --- keys and parents -----------------------------------------------------------------------------------------------


def test_keys_and_names_are_one_space(snapshots: Snapshots) -> None:
    snapshots.prepare("active")
    snapshots.view("view")
    snapshots.prepare("source")
    snapshots.commit("committed", "source")
    for taken in ("active", "view", "committed"):
        for make in (snapshots.prepare, snapshots.view):
            for parent in ("", "committed"):
                with refused(EXISTS, taken):
                    make(taken, parent)
        with refused(EXISTS, taken):
            snapshots.commit(taken, "active")
    assert {(info.name, info.kind) for info in snapshots.list()} == {
        ("active", "active"),
        ("view", "view"),
        ("committed", "committed"),
    }


def test_a_key_is_free_as_soon_as_it_is_removed_or_committed(snapshots: Snapshots) -> None:
    for _ in range(3):
        snapshots.prepare("a")
        snapshots.remove("a")
        snapshots.view("a")
        snapshots.remove("a")
    snapshots.prepare("a")
    snapshots.commit("b", "a")
    snapshots.prepare("a", "b")
    snapshots.remove("a")
    snapshots.remove("b")
    snapshots.prepare("b")


@pytest.mark.parametrize("key", STRANGE_KEYS, ids=range(len(STRANGE_KEYS)))
def test_keys_may_hold_anything(snapshots: Snapshots, key: str) -> None:
    name = f"{key} committed"
    snapshots.prepare(key)
    assert snapshots.stat(key).name == key
    with refused(EXISTS):
        snapshots.prepare(key)
    snapshots.commit(name, key)
    snapshots.view(key, name)
    assert {(info.name, info.parent) for info in snapshots.list()} == {(name, ""), (key, name)}
    with refused(PRECONDITION, "remove"):
        snapshots.remove(name)
    snapshots.remove(key)
    with refused(MISSING):
        snapshots.stat(key)


def test_an_empty_key_or_name_is_refused(snapshots: Snapshots) -> None:
    with refused(INVALID, "empty"):
        snapshots.prepare("")
    with refused(INVALID, "empty"):
        snapshots.view("")
    snapshots.prepare("a")
    with refused(INVALID, "empty"):
        snapshots.commit("", "a")
    assert [info.name for info in snapshots.list()] == ["a"]


def test_a_parent_is_committed(snapshots: Snapshots) -> None:
    snapshots.prepare("active")
    snapshots.view("view")
    for make in (snapshots.prepare, snapshots.view):
        for parent in ("active", "view"):
            with refused(INVALID, parent):
                make("child", parent)
        with refused(MISSING, "nothing"):
            make("child", "nothing")
    assert {info.name for info in snapshots.list()} == {"active", "view"}


def test_what_has_children_is_not_removed(snapshots: Snapshots, place: Path) -> None:
    layer(snapshots, "base", "", place)
    for make, child in ((snapshots.prepare, "active"), (snapshots.view, "view")):
        make(child, "base")
        with refused(PRECONDITION, "remove"):
            snapshots.remove("base")
        snapshots.remove(child)
    layer(snapshots, "upper", "base", place)
    with refused(PRECONDITION, "remove"):
        snapshots.remove("base")
    snapshots.remove("upper")
    snapshots.remove("base")


# --- commit ---------------------------------------------------------------------------------------------------------


def test_commit_replaces_the_key_and_all_labels(snapshots: Snapshots) -> None:
    snapshots.prepare("base-key", labels={"containerd.io/snapshot/a": "1"})
    snapshots.commit("base", "base-key")
    before = time.time_ns()
    snapshots.prepare("key", "base", {"containerd.io/snapshot/a": "1", "containerd.io/snapshot/b": "2"})
    prepared = snapshots.stat("key")
    assert (prepared.kind, prepared.parent) == ("active", "base")
    snapshots.commit("name", "key", {"containerd.io/snapshot/c": "3"})
    after = time.time_ns()
    with refused(MISSING):
        snapshots.stat("key")
    committed = snapshots.stat("name")
    assert (committed.kind, committed.parent) == ("committed", "base")
    assert committed.labels == {"containerd.io/snapshot/c": "3"}
    assert before <= prepared.created < committed.created == committed.updated <= after


def test_commit_is_of_an_active_snapshot(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    snapshots.commit("committed", "a")
    snapshots.view("empty-view")
    snapshots.view("view", "committed")
    for key in ("empty-view", "view", "committed"):
        with refused(PRECONDITION, key):
            snapshots.commit("name", key)
    with refused(MISSING, "nothing"):
        snapshots.commit("name", "nothing")
    with refused(MISSING):
        snapshots.stat("name")


def test_a_repeated_commit_is_answered_as_done(snapshots: Snapshots) -> None:
    snapshots.prepare("key", labels={"containerd.io/snapshot/a": "1"})
    snapshots.commit("name", "key", {"containerd.io/snapshot/a": "2"})
    first = snapshots.stat("name")
    snapshots.commit("name", "key", {"containerd.io/snapshot/a": "2"})
    assert snapshots.stat("name") == first
    with refused(MISSING):
        snapshots.commit("name", "other")
    with refused(MISSING):
        snapshots.commit("other", "key")
    snapshots.prepare("key")
    with refused(EXISTS, "name"):
        snapshots.commit("name", "key")


def test_commit_on_another_parent_is_refused(snapshots: Snapshots) -> None:
    for name in ("one", "two"):
        snapshots.prepare(f"{name}-key")
        snapshots.commit(name, f"{name}-key")
    snapshots.prepare("child", "one")
    with refused(INVALID, "two"):
        snapshots.commit("name", "child", parent="two")
    with refused(INVALID):
        snapshots.commit("name", "child", parent="nothing")
    assert snapshots.stat("child").kind == "active"
    snapshots.commit("name", "child", parent="one")
    assert snapshots.stat("name").parent == "one"
    snapshots.prepare("root")
    with refused(INVALID, "rebase|parent"):
        snapshots.commit("other", "root", parent="one")


# --- times and labels -----------------------------------------------------------------------------------------------


def test_times_of_all_kinds(snapshots: Snapshots) -> None:
    for make, key in ((snapshots.prepare, "active"), (snapshots.view, "view")):
        before = time.time_ns()
        make(key)
        after = time.time_ns()
        made = snapshots.stat(key)
        assert before <= made.created == made.updated <= after
        updated = snapshots.update(key, {"containerd.io/snapshot/x": "y"})
        assert updated == snapshots.stat(key)
        assert (updated.created, updated.kind) == (made.created, made.kind)
        assert after < updated.updated <= time.time_ns()


def test_update_changes_the_labels_that_the_mask_names(snapshots: Snapshots) -> None:
    key, other = "containerd.io/snapshot/k", "containerd.io/snapshot/other.with.dots"
    snapshots.prepare("a", labels={key: "1", other: "2"})
    assert snapshots.update("a", {key: "3", other: "ignored"}, [f"labels.{key}"]).labels == {key: "3", other: "2"}
    assert snapshots.update("a", {other: "4", "new": "5"}, [f"labels.{other}", "labels.new"]).labels == {
        key: "3",
        other: "4",
        "new": "5",
    }
    assert snapshots.update("a", {"new": ""}, ["labels.new"]).labels == {key: "3", other: "4"}
    assert snapshots.update("a", {}, [f"labels.{key}", "labels.never-there"]).labels == {other: "4"}
    for mask in (None, [], ["labels"], ["labels.x", "labels"]):
        assert snapshots.update("a", {key: str(mask)}, mask).labels == {key: str(mask)}
    assert snapshots.update("a").labels == {}


def test_update_with_another_path_changes_nothing(snapshots: Snapshots) -> None:
    snapshots.prepare("a", labels={"containerd.io/snapshot/k": "1"})
    before = snapshots.stat("a")
    for path in ("name", "parent", "kind", "created_at", "updated_at", "label", "labelsx", ""):
        for mask in ([path], ["labels", path], ["labels.new", path]):
            with refused(INVALID):
                snapshots.update("a", {"new": "2"}, mask)
    assert snapshots.stat("a") == before
    with refused(MISSING, "nothing"):
        snapshots.update("nothing", {"a": "b"})


def test_update_ignores_what_containerd_sends_besides(snapshots: Snapshots) -> None:
    snapshots.view("a")
    before = snapshots.stat("a")
    sent = {"parent": "x", "kind": "committed", "created": YEAR_ONE, "updated": YEAR_ONE}
    after = snapshots.update("a", {"containerd.io/snapshot/k": "v"}, [], **sent)  # type: ignore[arg-type]
    assert (after.name, after.parent, after.kind, after.created) == ("a", "", "view", before.created)
    assert before.updated < after.updated < time.time_ns()
    assert after.labels == {"containerd.io/snapshot/k": "v"}


def test_labels_as_large_as_containerd_lets_them_be(snapshots: Snapshots) -> None:
    labels = {f"containerd.io/snapshot/{number}": "\N{EURO SIGN}" * 1300 for number in range(20)}
    labels["containerd.io/snapshot/empty"] = ""
    snapshots.prepare("a", labels=labels)
    assert snapshots.stat("a").labels == labels


# --- mounts and contents --------------------------------------------------------------------------------------------


def test_one_mount_of_a_block_device(snapshots: Snapshots, daemon: Daemon) -> None:
    made = {"active": snapshots.prepare("active"), "view": snapshots.view("view")}
    snapshots.commit("base", "active")
    made |= {"child": snapshots.prepare("child", "base"), "child-view": snapshots.view("child-view", "base")}
    del made["active"]
    for key, mounts in made.items():
        (one,) = mounts
        assert one.type == "ext4"
        assert one.options == (("ro",) if "view" in key else ())
        assert stat.S_ISBLK(Path(one.source).stat().st_mode)
        assert snapshots.mounts(key) == mounts
    assert len({mounts[0].source for mounts in made.values()}) == 3
    with refused(PRECONDITION, "base"):
        snapshots.mounts("base")
    with refused(MISSING, "nothing"):
        snapshots.mounts("nothing")


def test_an_empty_file_system_is_empty(snapshots: Snapshots, place: Path) -> None:
    for mounts in (snapshots.prepare("a"), snapshots.view("b")):
        with mounted(mounts, place) as root:
            assert list(root.iterdir()) == []
            about = root.stat()
            assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (0o755, 0, 0)


def test_a_child_is_its_parent_with_changes(snapshots: Snapshots, place: Path) -> None:
    with mounted(snapshots.prepare("k1"), place) as root:
        (root / "kept").write_text("one")
        (root / "overwritten").write_text("one")
        (root / "removed").write_text("one")
        (root / "folder/inner").mkdir(parents=True)
        (root / "folder/inner/file").write_text("one")
        (root / "renamed").write_text("one")
        (root / "owned").write_text("one")
        os.symlink("kept", root / "link")
        os.mkfifo(root / "fifo")
        os.setxattr(root / "kept", "trusted.overlay.opaque", b"y")
    snapshots.commit("one", "k1")
    with mounted(snapshots.prepare("k2", "one"), place) as root:
        (root / "overwritten").write_text("two")
        (root / "removed").unlink()
        (root / "folder/inner/file").unlink()
        (root / "folder/inner").rmdir()
        (root / "folder").rmdir()
        (root / "folder").write_text("a file now")
        (root / "renamed").rename(root / "new-name")
        os.chown(root / "owned", 1000, 1001)
        (root / "owned").chmod(0o4750)
    before = snapshots.mounts("k2")
    snapshots.commit("two", "k2")
    with mounted(snapshots.view("v2", "two"), place) as root:
        assert sorted(path.name for path in root.iterdir()) == [
            "fifo", "folder", "kept", "link", "new-name", "overwritten", "owned",
        ]  # fmt: skip
        assert {path.name: path.read_text() for path in root.iterdir() if path.name != "fifo"} == {
            "folder": "a file now",
            "kept": "one",
            "link": "one",
            "new-name": "one",
            "overwritten": "two",
            "owned": "one",
        }
        about = (root / "owned").stat()
        assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (0o4750, 1000, 1001)
        assert os.getxattr(root / "kept", "trusted.overlay.opaque") == b"y"
        assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    with mounted(snapshots.prepare("k3", "one"), place) as root:
        assert (root / "overwritten").read_text() == (root / "folder/inner/file").read_text() == "one"
        assert not (root / "new-name").exists()
    assert before != snapshots.mounts("k3")


def test_a_hundred_and_twenty_eight_layers(snapshots: Snapshots, place: Path) -> None:
    """Each writes a file of its own, overwrites one, renames one, and takes away what the one before made."""
    parent = ""
    for number in range(128):
        with mounted(snapshots.prepare(f"key-{number}", parent), place) as root:
            (root / f"own-{number}").write_text(str(number))
            (root / "shared").write_text(str(number))
            (root / f"folder-{number}").mkdir(mode=0o700 + number % 8)
            if number:
                (root / f"moving-{number - 1}").rename(root / f"moving-{number}")
                (root / f"folder-{number - 1}").rmdir()
            else:
                (root / "moving-0").write_text("from the first")
        snapshots.commit(f"layer-{number}", f"key-{number}")
        parent = f"layer-{number}"
    with mounted(snapshots.prepare("top", parent), place) as root:
        names = {path.name for path in root.iterdir()}
        assert names == {*(f"own-{number}" for number in range(128)), "shared", "moving-127", "folder-127"}
        assert all((root / f"own-{number}").read_text() == str(number) for number in range(128))
        assert (root / "shared").read_text() == "127"
        assert (root / "moving-127").read_text() == "from the first"
    with mounted(snapshots.view("middle", "layer-63"), place) as root:
        assert (root / "shared").read_text() == "63"
        assert not (root / "own-64").exists()
    chain = {info.name: info.parent for info in snapshots.list("kind==committed")}
    layers = ["", *(f"layer-{number}" for number in range(128))]
    assert chain == {child: below for below, child in pairwise(layers)}


def test_a_view_takes_no_write(snapshots: Snapshots, place: Path) -> None:
    layer(snapshots, "base", "", place, file="of the base")
    for mounts in (snapshots.view("view", "base"), snapshots.view("empty")):
        with mounted(mounts, place) as root, pytest.raises(OSError, match="Read-only file system"):
            (root / "new").write_text("")
        with device_of(mounts).open("r+b", buffering=0) as device, pytest.raises(OSError, match="ermitted"):
            device.write(bytes(4096))
        place.mkdir()
        with pytest.raises(NotPermitted):
            mount.mount(str(device_of(mounts)), place, "ext4", "rw")
        place.rmdir()


def test_fifty_prepares_at_once(snapshots: Snapshots, place: Path) -> None:
    layer(snapshots, "base", "", place, file="of the base")
    with ThreadPoolExecutor(50) as threads:
        calls = [threads.submit(snapshots.prepare, f"key-{number}", "base") for number in range(50)]
    assert len({device_of(call.result()) for call in calls}) == 50
    for number in (0, 24, 49):
        with mounted(snapshots.mounts(f"key-{number}"), place) as root:
            assert (root / "file").read_text() == "of the base"
            (root / "file").write_text("mine")


def test_one_key_at_once_has_one_winner(snapshots: Snapshots) -> None:
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(snapshots.prepare, "key") for _ in range(8)]
        errors = [error for call in calls if (error := call.exception())]
    assert len(errors) == 7
    assert all(isinstance(error, grpc.RpcError) and error.code() is EXISTS for error in errors)
    assert snapshots.stat("key").kind == "active"


# --- the wire -------------------------------------------------------------------------------------------------------


def test_fields_that_nobody_knows_are_skipped(daemon: Daemon, snapshots: Snapshots) -> None:
    with Snapshots(daemon.socket, extra=UNKNOWN_FIELDS) as future:
        future.prepare("a")
        future.mounts("a")
        future.update("a", {"k": "v"})
        assert future.usage("a").inodes == 0
        future.commit("b", "a")
        future.view("c", "b")
        assert [info.name for info in future.list()] == ["b", "c"]
        future.remove("c")
        future.cleanup()
        assert future.stat("b") == snapshots.stat("b")


def test_a_namespace_is_neither_needed_nor_heeded(daemon: Daemon, snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    with Snapshots(daemon.socket, headers=[("containerd-namespace", "k8s.io")]) as other:
        assert other.list() == snapshots.list()
        other.commit("b", "a")
    assert snapshots.stat("b").kind == "committed"


def test_what_is_no_request_is_refused(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    for body in (b"\xff", b"\x0a\x7fshort", b"\x0a\x06dmthin\x12\x02\xff\xfe"):
        with refused(grpc.StatusCode.INTERNAL, "cannot decode the request"):
            snapshots.raw("Stat", body)
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        snapshots.raw("Nothing", b"")
    assert snapshots.raw("Stat", b"\x0a\x06dmthin\x12\x01b\x12\x01a").startswith(b"\x0a")


def test_a_snapshot_is_as_large_as_the_store_says(snapshots: Snapshots, place: Path) -> None:
    with mounted(snapshots.prepare("a"), place) as root:
        figures = os.statvfs(root)
        assert 280 * MIB < figures.f_blocks * figures.f_frsize <= 320 * MIB
