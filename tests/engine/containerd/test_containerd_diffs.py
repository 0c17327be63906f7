"""The diff service with a real containerd as content store: layers of running containers, and layers unpacked.

containerd 1.6 has no proxy differ, so the tests call dmthin's service as a later containerd does.
"""

import gzip
import hashlib
import io
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import zstandard
from grpc import StatusCode

from dmthin.store.state.model import FROZEN_NAMES
from enginelib.differ import LAYER, Descriptor, DiffCall
from enginelib.snapshots import Mount
from enginelib.waiting import until
from tests.engine.containerd.conftest import IMAGE
from tests.support.archives import oci_archive
from tests.support.containerd import DMTHIN, ROOTED, SMALL, Containerd
from tests.support.snapshotters import mounted, refused

OTHER = "docker.io/library/committed:1"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
CHANGES = "rm -r /srv/old; echo four > /srv/four; ln /srv/four /srv/too; chmod 4711 /bin; rm /srv/new; mkdir /srv/new"
MEBIBYTES = 64


def unpacked(layer: bytes) -> bytes:
    if layer[:2] == b"\x1f\x8b":
        return gzip.decompress(layer)
    if layer[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(layer)
    return layer


def blob(containerd: Containerd, descriptor: Descriptor) -> bytes:
    """A blob, checked against its descriptor."""
    content = containerd.run("content", "get", descriptor.digest).stdout
    assert descriptor.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert descriptor.size == len(content)
    return content


def names(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(unpacked(layer))) as archive:
        return archive.getnames()


def changed(layer: bytes) -> list[str]:
    """The names in a layer where CHANGES has changed something: containerd makes mount points elsewhere."""
    return sorted(name for name in names(layer) if name.split("/")[0] in ("bin", "srv"))


def labels(containerd: Containerd, digest: str) -> str:
    (line,) = (line for line in containerd("content", "ls").splitlines() if digest in line.split()[0])
    return line


def frozen(containerd: Containerd, snapshotter: str = DMTHIN) -> list[str]:
    with containerd.store(snapshotter) as store:
        return [volume.name for volume in store.ledger.volumes() if volume.name.startswith(FROZEN_NAMES)]


@pytest.fixture
def web(containerd: Containerd) -> Iterator[str]:
    """A container that runs and has changed files. In the end there is no lease, and nothing half written."""
    containerd.background(IMAGE, "web")
    containerd.execute("web", CHANGES)
    yield "web"
    containerd.start()
    for lease in containerd("leases", "ls", "-q").split():
        containerd("leases", "rm", "--sync", lease)
    assert containerd("content", "active").splitlines()[1:] == []
    until(lambda: not frozen(containerd))


@contextmanager
def sides(
    containerd: Containerd, name: str, parent: str, snapshotter: str = DMTHIN
) -> Iterator[tuple[tuple[Mount, ...], tuple[Mount, ...]]]:
    """The mounts that a commit compares: of a view of the parent, and of the container's own snapshot."""
    with containerd.snapshots(snapshotter) as client:
        left = client.view(f"{name}-below", parent, ROOTED)
        try:
            yield left, client.mounts(name)
        finally:
            client.remove(f"{name}-below")


@contextmanager
def stopped(containerd: Containerd) -> Iterator[None]:
    """containerd is stopped by a signal and answers nothing until the block ends."""
    os.kill(containerd.containerd.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(containerd.containerd.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("media_type", "magic"),
    [
        ("", b"\x1f\x8b"),
        (LAYER, b"PaxHeaders.0/bin"),
        (f"{LAYER}+gzip", b"\x1f\x8b"),
        (f"{LAYER}+zstd", b"\x28\xb5\x2f\xfd"),
        (f"{DOCKER}.gzip", b"\x1f\x8b"),
    ],
)
def test_a_running_container_becomes_a_layer(
    containerd: Containerd, web: str, chain: list[str], media_type: str, magic: bytes
) -> None:
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        made = differ.diff(left, right, media_type, labels={"note": "mine"}).result()
    assert made.media_type == (media_type or f"{LAYER}+gzip")
    layer = blob(containerd, made)
    assert layer.startswith(magic)
    diff_id = f"sha256:{hashlib.sha256(unpacked(layer)).hexdigest()}"
    said = labels(containerd, made.digest)
    assert f"containerd.io/uncompressed={diff_id}" in said
    assert "note=mine" in said
    assert changed(layer) == ["bin", "srv", "srv/.wh.old", "srv/four", "srv/new", "srv/too"]
    containerd.collect_garbage()
    assert blob(containerd, made) == layer  # only the lease refers to it yet


def test_the_layer_of_a_running_container_in_an_image(
    containerd: Containerd, web: str, chain: list[str], layers: list[bytes]
) -> None:
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        layer = blob(containerd, differ.diff(left, right).result())
    containerd.execute(web, "echo later > /srv/later")
    containerd.load(oci_archive(OTHER, [*layers, unpacked(layer)]))
    said = containerd.container(OTHER, "sh", "-c", "ls /srv; stat -c %h,%a /srv/too /bin; cat /srv/too")
    assert said.split() == ["four", "hidden", "new", "too", "2,644", "2,4711", "four"]
    containerd("images", "rm", "--sync", OTHER)


def test_a_container_on_xfs(containerd: Containerd, web: str, layers: list[bytes], chain: list[str]) -> None:
    containerd.load(oci_archive(OTHER, layers), snapshotter=SMALL)
    containerd.background(OTHER, "small", snapshotter=SMALL)
    containerd.execute("small", CHANGES)
    with containerd.differ() as differ:
        with sides(containerd, web, chain[-1]) as (left, right):
            ours = differ.diff(left, right, LAYER).result()
        with sides(containerd, "small", chain[-1], SMALL) as (left, right):
            other = differ.diff(left, right, LAYER).result()
    assert changed(blob(containerd, ours)) == changed(blob(containerd, other))
    containerd.discard("small")
    containerd("images", "rm", "--sync", OTHER)


def test_the_same_layer_again(containerd: Containerd, web: str, chain: list[str]) -> None:
    """The blob exists then: it belongs to the new lease too, and gets the labels that it lacks."""
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        first = differ.diff(left, right, epoch=1_700_000_000).result()
        assert differ.diff(left, right, ref="mine", labels={"note": "mine"}, epoch=1_700_000_000).result() == first
        assert differ.diff(left, right).result() != first
    assert "note=mine" in labels(containerd, first.digest)
    one, *_ = containerd("leases", "ls", "-q").split()
    containerd("leases", "rm", "--sync", one)
    assert blob(containerd, first)
    with tarfile.open(fileobj=io.BytesIO(unpacked(blob(containerd, first)))) as archive:
        assert {info.name: info.mtime for info in archive} == dict.fromkeys(archive.getnames(), 1_700_000_000) | {
            "srv/.wh.old": 0
        }


def test_a_lease_of_the_clients_own(containerd: Containerd, web: str, chain: list[str]) -> None:
    lease = containerd("leases", "create").strip()
    headers = [("containerd-namespace", "default"), ("containerd-lease", lease)]
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ(headers) as differ:
        made = differ.diff(left, right).result()
    assert containerd("leases", "ls", "-q").split() == [lease]
    assert blob(containerd, made)
    containerd("leases", "rm", "--sync", lease)
    assert made.digest not in containerd("content", "ls", "-q").split()


def test_a_whole_tree_without_a_parent(containerd: Containerd, web: str) -> None:
    with containerd.snapshots() as client, containerd.differ() as differ:
        found = names(blob(containerd, differ.diff((), client.mounts(web)).result()))
    assert {"bin/busybox", "srv/four", "etc/motd"} <= set(found)
    assert not [name for name in found if "lost+found" in name or ".wh." in name]


@pytest.mark.parametrize("media_type", [LAYER, f"{LAYER}+gzip", f"{LAYER}+zstd"])
def test_a_layer_is_unpacked(
    containerd: Containerd, web: str, chain: list[str], tmp_path: Path, media_type: str
) -> None:
    with containerd.snapshots() as client, containerd.differ() as differ:
        with sides(containerd, web, chain[-1]) as (left, right):
            made = differ.diff(left, right, media_type).result()
        target = client.prepare("target", chain[-1], ROOTED)
        tar = unpacked(blob(containerd, made))
        expected = Descriptor(LAYER, f"sha256:{hashlib.sha256(tar).hexdigest()}", len(tar))
        assert differ.apply(made, target) == expected
        with mounted(client.mounts("target"), tmp_path / "place") as place:
            assert sorted(path.name for path in (place / "srv").iterdir()) == ["four", "hidden", "new", "too"]
            assert (place / "srv/too").stat().st_nlink == 2
            assert (place / "srv/new").is_dir()
        client.remove("target")


def test_what_cannot_be_unpacked(containerd: Containerd, web: str, chain: list[str]) -> None:
    with containerd.snapshots() as client, containerd.differ() as differ:
        with sides(containerd, web, chain[-1]) as (left, right):
            made = differ.diff(left, right).result()
            with refused(StatusCode.FAILED_PRECONDITION, "cannot be written"):
                differ.apply(made, left)
        target = client.prepare("target", chain[-1], ROOTED)
        absent = Descriptor(made.media_type, f"sha256:{'0' * 64}", 0)
        with refused(StatusCode.NOT_FOUND, "0000"):
            differ.apply(absent, target)
        with refused(StatusCode.INVALID_ARGUMENT, "has the digest|has .* bytes"):
            differ.apply(Descriptor(made.media_type, made.digest, made.size + 1), target)
        index = next(line for line in containerd("content", "ls").splitlines() if "gc.ref.content" in line).split()[0]
        with refused(StatusCode.INVALID_ARGUMENT, "tar archive"):
            differ.apply(Descriptor(made.media_type, index, 0), target)
        client.remove("target")


def test_what_is_left_to_the_next_differ(containerd: Containerd, web: str, chain: list[str]) -> None:
    """containerd asks it after this status only."""
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        overlay = (Mount("overlay", "overlay", ("upperdir=/a", "lowerdir=/b")),)
        bind = (Mount("bind", "/srv", ("rbind", "ro")),)
        for one, two in ((overlay, overlay), (left, bind), (bind, right), (left, (*right, *right)), (left, ())):
            with refused(StatusCode.UNIMPLEMENTED, "not dmthin's"):
                differ.diff(one, two).result()
        other = (Mount("xfs", right[0].source),)
        null = (Mount("ext4", "/dev/null"),)
        for mounts in (overlay, bind, other, null):
            with refused(StatusCode.UNIMPLEMENTED, "not dmthin's"):
                differ.apply(Descriptor(LAYER, f"sha256:{'0' * 64}", 0), mounts)
        for media_type in (f"{LAYER}+gzip+encrypted", "application/x-tar"):
            with refused(StatusCode.UNIMPLEMENTED, "media type"):
                differ.diff(left, right, media_type).result()
            with refused(StatusCode.UNIMPLEMENTED, "media type"):
                differ.apply(Descriptor(media_type, f"sha256:{'0' * 64}", 0), right)


def cancel(_: Containerd, call: DiffCall) -> None:
    call.cancel()


def kill(containerd: Containerd, call: DiffCall) -> None:
    containerd.dmthin.end(signal.SIGKILL)
    with pytest.raises(grpc.RpcError):
        call.result()
    containerd.dmthin.start()


def stop(containerd: Containerd, call: DiffCall) -> None:
    """It waits for a while for calls under way, and cancels what does not end."""
    assert containerd.dmthin.end() == 0
    with pytest.raises(grpc.RpcError):
        call.result()
    assert not frozen(containerd)
    containerd.dmthin.start()


@pytest.mark.parametrize("end", [cancel, kill, stop])
def test_a_diff_that_ends_in_the_middle(
    containerd: Containerd, web: str, chain: list[str], end: Callable[[Containerd, DiffCall], None]
) -> None:
    """The fixture `web` sees that nothing of it stays."""
    containerd.execute(web, f"dd if=/dev/urandom of=/srv/large bs=1M count={MEBIBYTES}")
    with containerd.differ() as differ, sides(containerd, web, chain[-1]) as (left, right):
        call = differ.diff(left, right)
        until(lambda: "dmthin-diff-" in containerd("content", "active"))
        with stopped(containerd):
            assert frozen(containerd)
            end(containerd, call)
        containerd.await_answers()
    until(lambda: not frozen(containerd), again=containerd.collect_garbage)
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        assert "srv/large" in names(blob(containerd, differ.diff(left, right).result()))


def test_a_containerd_that_dies(containerd: Containerd, web: str, chain: list[str]) -> None:
    containerd.execute(web, f"dd if=/dev/urandom of=/srv/large bs=1M count={MEBIBYTES}")
    with sides(containerd, web, chain[-1]) as (left, right), containerd.differ() as differ:
        call = differ.diff(left, right)
        until(lambda: "dmthin-diff-" in containerd("content", "active"))
        containerd.containerd.end(signal.SIGKILL)
        with refused(StatusCode.UNAVAILABLE, "containerd at"):
            call.result()
        until(lambda: not frozen(containerd))
        containerd.start()
