"""Images, and containers that write, with a real containerd on dmthin."""

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmthin.kernel import mount
from dmthin.units import MIB
from enginelib.daemons import Failed
from enginelib.waiting import PATIENCE, until
from tests.engine.containerd.conftest import IMAGE
from tests.support.archives import docker_archive, oci_archive
from tests.support.containerd import DMTHIN, ROOTED, Containerd

LOOK = "find /srv /tmp; cat /etc/motd /srv/new /srv/hidden/c"
SEEN = {"/srv", "/srv/old", "/srv/new", "/srv/hidden", "/srv/hidden/c", "changed", "of the second", "of the third"}
OTHER = "docker.io/library/other:1"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount at; nothing is mounted there in the end."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert not folder.is_mount()


@pytest.fixture
def other(containerd: Containerd) -> Iterator[str]:
    """A name for a second image, which is removed in the end."""
    yield OTHER
    containerd("images", "rm", "--sync", OTHER)


def snapshot_table(containerd: Containerd) -> dict[str, tuple[str, ...]]:
    """What `ctr snapshots ls` shows: the kind by key, after the parent where there is one."""
    lines = containerd("snapshots", "--snapshotter", DMTHIN, "ls").splitlines()[1:]
    return {key: tuple(others) for key, *others in map(str.split, lines)}


def file_system_size(said: str) -> int:
    """MiB of a file system, from `df -m`."""
    return int(said.splitlines()[1].split()[1])


def test_containerd_takes_the_configuration_that_dmthin_prints(containerd: Containerd) -> None:
    lines = containerd("plugins", "ls").splitlines()
    state = {identity: status for _, identity, _, status in (line.split() for line in lines[1:])}
    assert {state[name] for name in ("dmthin", "large", "cri")} == {"ok"}
    assert 'snapshotter = "dmthin"' in containerd.config.read_text()


def test_an_image_with_whiteouts_is_the_sum_of_its_layers(containerd: Containerd, chain: list[str]) -> None:
    # ctr may lose the end of what a container prints just before it ends.
    until(lambda: set(containerd.container(IMAGE, "sh", "-c", LOOK).splitlines()) == SEEN)
    first, second, third = chain
    assert snapshot_table(containerd) == {
        first: ("Committed",),
        second: (first, "Committed"),
        third: (second, "Committed"),
    }


def test_layers_that_are_there_take_nothing_more(containerd: Containerd, layers: list[bytes], other: str) -> None:
    before = containerd.kept()
    containerd.load(docker_archive(other, layers))
    assert containerd.kept() == before
    assert set(containerd.container(other, "sh", "-c", LOOK).splitlines()) == SEEN


def test_containers_are_apart_in_their_writes(containerd: Containerd) -> None:
    for name in ("one", "two"):
        containerd.background(IMAGE, name)
    containerd.execute("one", "echo one > /srv/mine; rm /srv/new")
    containerd.execute("two", "echo two > /srv/mine; echo more >> /srv/new")
    assert containerd.execute("one", "cat /srv/mine; ls /srv") == "one\nhidden\nmine\nold\n"
    assert containerd.execute("two", "cat /srv/mine /srv/new") == "two\nof the second\nmore\n"
    assert set(containerd.container(IMAGE, "sh", "-c", LOOK).splitlines()) == SEEN


def test_many_at_once(containerd: Containerd, chain: list[str]) -> None:
    names = [f"c{number}" for number in range(4)]
    starting = [containerd.begin(*containerd.background_words(IMAGE, name)) for name in names]
    for process in starting:
        _, words = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, words.decode()
    containerd.await_names(*chain, *names)
    assert sorted(containerd("tasks", "ls", "-q").split()) == names


def test_what_a_container_has_written_becomes_an_image(containerd: Containerd, layers: list[bytes], other: str) -> None:
    """containerd makes the layer from a stopped container.

    Of one that runs it cannot: it mounts the snapshot read-only, which the kernel refuses while it is mounted to be
    written elsewhere.
    """
    containerd.background(IMAGE, "web")
    containerd.execute("web", "rm -r /srv/old; echo four > /srv/four; ln /srv/four /srv/too; chmod 4711 /bin")
    with pytest.raises(Failed, match="device or resource busy"):
        containerd("snapshots", "--snapshotter", DMTHIN, "diff", "web")
    containerd.end_task("web")
    layer = gzip.decompress(containerd.run("snapshots", "--snapshotter", DMTHIN, "diff", "web").stdout)
    containerd.load(oci_archive(other, [*layers, layer]))
    said = containerd.container(other, "sh", "-c", "ls /srv; stat -c %h,%a /srv/too /bin; cat /srv/too")
    assert said.split() == ["four", "hidden", "new", "too", "2,644", "2,4711", "four"]


def test_a_snapshot_is_committed_and_written_on(containerd: Containerd, chain: list[str], place: Path) -> None:
    containerd.background(IMAGE, "web")
    containerd.execute("web", "echo kept > /srv/kept")
    containerd.end_task("web")
    ctr = ("snapshots", "--snapshotter", DMTHIN)
    containerd(*ctr, "commit", "stage", "web")
    containerd(*ctr, "prepare", "next", "stage")
    containerd.await_names(*chain, "stage", "next")
    with containerd.snapshots() as client:
        (where,) = client.mounts("next")
    mount.mount(where.source, place, where.type, ",".join(where.options))
    try:
        assert (place / "srv/kept").read_text() == "kept\n"
        (place / "srv/kept").write_text("changed\n")
    finally:
        mount.unmount(place)
    with pytest.raises(Failed, match="cannot remove snapshot with child"):
        containerd(*ctr, "rm", "stage")
    containerd(*ctr, "rm", "next")
    containerd(*ctr, "rm", "stage")


def test_a_snapshot_may_be_larger_than_its_image(containerd: Containerd) -> None:
    def options(size: str) -> list[str]:
        return ["--snapshotter-label", f"containerd.io/snapshot/max-size={size}"]

    said = containerd.container(IMAGE, "df", "-m", "/", options=options(str(2048 * MIB)))
    assert file_system_size(said) > 1900
    assert file_system_size(containerd.container(IMAGE, "df", "-m", "/")) < 512
    with pytest.raises(Failed, match=r"max-size='2 GB' is not a number of bytes"):
        containerd.container(IMAGE, "true", options=options("2 GB"))
    with pytest.raises(Failed, match="size 1M is less than the 512M"):
        containerd.container(IMAGE, "true", options=options(str(MIB)))


def test_use_is_what_a_snapshot_has_of_its_own(containerd: Containerd, chain: list[str]) -> None:
    containerd.background(IMAGE, "web")
    containerd.execute("web", "dd if=/dev/urandom of=/srv/large bs=1M count=16; busybox sync")
    lines = containerd("snapshots", "--snapshotter", DMTHIN, "usage", "-b").splitlines()[1:]
    sizes = {key: (int(size), int(inodes)) for key, size, inodes in map(str.split, lines)}
    assert 16 * MIB < sizes["web"][0] < 20 * MIB
    first, second, third = (sizes[name] for name in chain)
    assert 2 * MIB < first[0] < 8 * MIB, "busybox, and what mkfs has written"
    assert first[1] > 15, "its files"
    assert max(second[0], third[0]) < MIB
    assert second[1] == 4, "five more, a folder among them, and one less"
    assert third[1] == 0
    with containerd.snapshots() as client:
        assert client.usage("web").size == sizes["web"][0]
    assert '"Kind": "Active"' in containerd("snapshots", "--snapshotter", DMTHIN, "info", "web")
    assert containerd("snapshots", "--snapshotter", DMTHIN, "tree").splitlines()[-1].split() == ["\\_", "web"]


def test_a_view_is_mounted_to_be_read(containerd: Containerd, chain: list[str], place: Path) -> None:
    """By hand: `ctr images mount` of containerd 1.6 takes overlayfs, whatever snapshotter it is given."""
    ctr = ("snapshots", "--snapshotter", DMTHIN)
    with containerd.snapshots() as client:
        client.view("look", chain[-1], ROOTED)  # ctr gives a view no root, and it goes with the next collection
    subprocess.run(["sh", "-c", containerd(*ctr, "mounts", str(place), "look")], check=True)
    try:
        assert mount.table()[-1].fs_type == "ext4"
        assert (place / "srv/hidden/c").read_text() == "of the third\n"
        assert not (place / "srv/old/file").exists()
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "srv/no").touch()
    finally:
        mount.unmount(place)
    with pytest.raises(Failed, match="only an active snapshot can be committed"):
        containerd(*ctr, "commit", "never", "look")
    containerd(*ctr, "rm", "look")
