"""The worker: what dockerd asks of layers, done by a process that can reach nothing but two trees."""

import bz2
import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace
from dmthin.layers.entry import Entry, EntryType
from dmthin.layers.job import Job, TarDigest, Verb, parse_report, parse_tar
from dmthin.layers.tarwriter import TarWriter
from enginelib.waiting import PATIENCE, until
from tests.support.tars import member, tar
from tests.support.trees import CAPABILITY, seen

DIRECTORY, SYMLINK, HARDLINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
KEPT = sum(1 << number for number in (0, 1, 2, 3, 4, 21, 27, 31))
OPEN_TREE, OPEN_TREE_CLONE, AT_FDCWD = 428, 1, -100
libc = ctypes.CDLL(None, use_errno=True)

Spawned = subprocess.Popen[bytes]


@contextlib.contextmanager
def detached(path: Path) -> Iterator[int]:
    """The root of a mount of its own, which is nowhere attached (open_tree(2))."""
    fd = libc.syscall(OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def working(verb: Verb, root: Path, parent: Path | None = None, *, more: int = -1, **fields: Any) -> Iterator[
    tuple[Spawned, int]
]:  # fmt: skip
    """A worker at work, and the descriptor of its report; it also inherits `more`, which its job does not name."""
    report, theirs = os.pipe()
    try:
        with contextlib.ExitStack() as stack:
            root_fd = stack.enter_context(detached(root))
            parent_fd = stack.enter_context(detached(parent)) if parent else None
            job = Job(verb, root_fd, fields.pop("name", "the layer"), parent_fd, **fields)
            passed = {*job.descriptors(theirs), *([more] if more >= 0 else [])}
            worker = subprocess.Popen(
                job.argv(theirs),
                env=job.environment(),
                pass_fds=tuple(passed),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        os.close(theirs)
        with worker:
            try:
                yield worker, report
            finally:
                worker.kill()
    finally:
        os.close(report)


def work(verb: Verb, root: Path, parent: Path | None = None, data: bytes = b"", **fields: Any) -> tuple[int, bytes]:
    """Let a worker do its job; the size that it reports, and what it wrote. Raises what it reports."""
    with working(verb, root, parent, **fields) as (worker, report):
        output, _ = worker.communicate(data)
        said = os.read(report, 1 << 16)
        assert worker.returncode == (0 if b'"size"' in said else 1), said
        return parse_report(said), output


def apply(root: Path, *members: tuple[tarfile.TarInfo, bytes]) -> int:
    return work(Verb.APPLY, root, data=tar(*members))[0]


def child_of(worker: Spawned) -> int:
    """The process that does the work."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    until(children.read_text)
    return int(children.read_text().split()[0])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty file system of its own."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("DMTHIN_VM_SCRATCH")) as scratch:
        image, target = Path(scratch, "image"), Path(scratch, request.param)
        target.mkdir()
        image.touch()
        os.truncate(image, 512 << 20)
        subprocess.run([f"mkfs.{request.param}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, target], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", target], check=True)


@pytest.fixture
def place(disk: Path) -> Iterator[Path]:
    """An empty folder on `disk`."""
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        yield Path(scratch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty tree in memory; beside it lies what no worker may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("untouched")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory."""
    target = tmp_path / "memory"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "small", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def outside_is_untouched(root: Path) -> None:
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]
    assert os.listdir(root.parent / "outside") == ["file"]
    info = (root.parent / "outside/file").stat()
    assert (info.st_nlink, (root.parent / "outside/file").read_text()) == (1, "untouched")


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=SYMLINK, linkname=target)


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=DIRECTORY, mode=0o755)


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "an absolute name": ([member("/outside/file", b"x")], "outside/file"),
    "dots": ([member("../outside/file", b"x"), member("a/../../../outside/file", b"y")], "outside/file"),
    "a link to a folder of the host": ([folder("etc"), link("w", "/etc"), member("w/proof", b"x")], "etc/proof"),
    "a link upwards": ([link("w", "../../outside"), folder("outside"), member("w/file", b"x")], "outside/file"),
    "a swapped link": ([folder("d"), member("d/a"), link("d", "/"), member("d/proof", b"x")], "proof"),
    "a whiteout behind a link": ([folder("outside"), link("w", "../outside"), member("w/.wh.file")], "outside"),
    "an opaque mark behind a link": ([link("w", "../.."), member("w/.wh..wh..opq"), member("z")], "z"),
    "a link in proc": ([link("w", "/proc/self/root"), folder("proc/self/root"), member("w/f")], "proc/self/root/f"),
    "a deep path": ([member("d/" * 1000 + "f", b"x")], "d/" * 1000 + "f"),
}
REFUSED: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "a hard link to a file of the host": (
        [member("h", type=HARDLINK, linkname="../../etc/shadow")],
        "refers to ../../etc/shadow, which does not exist",
    ),
    "a hard link to its neighbour": ([member("h", type=HARDLINK, linkname="../outside/file")], "which does not exist"),
    "a device as a parent": ([member("n", type=tarfile.CHRTYPE, devmajor=1, devminor=3), member("n/f")], "directory"),
    "a link that leads nowhere": ([link("w", "/etc"), member("w/proof")], "a dangling symbolic link"),
    "a path without end": ([member("d/" * 3000 + "f")], "longer than 4095 bytes"),
    "a malformed whiteout": ([member("a/.wh...")], "is a whiteout without a name"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_layers_stay_inside(root: Path, what: str) -> None:
    members, made = HOSTILE[what]
    before = sorted(os.listdir("/etc"))
    apply(root, *members)
    fd = os.open(root, os.O_PATH)
    for name in made.split("/"):
        inner = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    outside_is_untouched(root)
    assert sorted(os.listdir("/etc")) == before
    subprocess.run(["rm", "-rf", root / "d"], check=True)


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_layers_are_refused(root: Path, what: str) -> None:
    members, words = REFUSED[what]
    with pytest.raises(InvalidValue, match=words):
        apply(root, *members)
    outside_is_untouched(root)


def test_a_size_that_lies(root: Path) -> None:
    info, _ = member("f")
    info.size = 1 << 40
    with pytest.raises(InvalidValue, match="the layer is truncated: it ends within f"):
        work(Verb.APPLY, root, data=tar((info, b"short")))
    outside_is_untouched(root)


def test_the_worker_is_shut_in(root: Path) -> None:
    secret = os.open("/etc/passwd", os.O_RDONLY)
    with working(Verb.APPLY, root, more=secret) as (worker, report):
        assert worker.stdin
        begin = tar(member("first"), member("f", bytes(1 << 20)))[:-4096]
        worker.stdin.write(begin)
        worker.stdin.flush()
        until((root / "first").exists)
        pid = child_of(worker)
        own = Path("/proc/self/ns")
        for kind in ("mnt", "pid", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(own / kind)
        assert os.listdir(f"/proc/{pid}/root") == ["proc"]
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert [(fields[4], fields[5].split(",")[0]) for fields in mounts] == [("/", "ro"), ("/proc", "ro")]
        inside = os.listdir(f"/proc/{pid}/root/proc")
        assert [name for name in inside if name.isdigit()] == ["1"]
        assert "sysrq-trigger" not in inside
        words = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for caps, expected in (("CapEff", KEPT), ("CapPrm", KEPT), ("CapBnd", KEPT), ("CapInh", 0), ("CapAmb", 0)):
            assert int(words[caps], 16) == expected
        assert (words["NoNewPrivs"], words["NSpid"].split()[1]) == ("1", "1")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert f"Max address space         {1 << 30}" in limits
        assert "Max core file size        0 " in limits
        open_files = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert not any("passwd" in name for name in open_files)
        # Three pipes, the report, the root as it was given and as it is open, and the file being written.
        assert len(os.listdir(f"/proc/{pid}/fd")) <= 7
        own_mounts = Path("/proc/self/mountinfo").read_text()
        assert own_mounts.count(" /proc ") == 1, "the worker's mounts must not reach the host"
        worker.stdin.write(tar(member("first"), member("f", bytes(1 << 20)))[-4096:])
        worker.stdin.close()
        assert worker.wait(PATIENCE) == 0
        assert parse_report(os.read(report, 4096)) == 1 << 20
    os.close(secret)


def test_the_parent_and_the_child_die_with_theirs(root: Path, tmp_path: Path) -> None:
    """SIGKILL leaves nobody who could still write into a layer."""
    script = (
        "import signal, subprocess, sys\n"
        "worker = subprocess.Popen(sys.argv[2:], pass_fds=[int(n) for n in sys.argv[1].split(',')], stdin=0)\n"
        "print(worker.pid, flush=True)\n"
        "signal.pause()\n"
    )
    for victim in ("grandparent", "parent"):
        report, theirs = os.pipe()
        read_end, write_end = os.pipe()
        with detached(root) as root_fd:
            job = Job(Verb.APPLY, root_fd, "x")
            starter = subprocess.Popen(
                [sys.executable, "-c", script, ",".join(map(str, job.descriptors(theirs))), *job.argv(theirs)],
                env=job.environment(),
                pass_fds=job.descriptors(theirs),
                stdin=read_end,
                stdout=subprocess.PIPE,
            )
            os.close(theirs)
            os.close(read_end)
            with starter:
                assert starter.stdout
                worker = int(starter.stdout.readline())
                os.write(write_end, tar(member(victim), member("f", bytes(50_000)))[:3000])
                until((root / victim).exists)
                child = int(Path(f"/proc/{worker}/task/{worker}/children").read_text())
                os.kill(starter.pid if victim == "grandparent" else worker, signal.SIGKILL)
                until(lambda worker=worker: is_gone(worker))  # type: ignore[misc]
                until(lambda child=child: is_gone(child))  # type: ignore[misc]
                starter.kill()
        os.close(write_end)
        with pytest.raises(KernelError, match="died without a report"):
            parse_report(os.read(report, 4096))
        os.close(report)


def populate(tree: Path) -> None:
    """All that a layer can carry."""
    (tree / "d/e").mkdir(parents=True)
    for name in ("f", "d/e/g", "suid"):
        (tree / name).write_text(name)
    os.setxattr(tree / "suid", "security.capability", CAPABILITY)
    os.setxattr(tree / "f", "user.x", b"\0=\n\xff")
    os.setxattr(tree / "d", "trusted.t", b"t")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, 2**32 - 1), (2, 4, 1234), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1))
    )
    os.setxattr(tree / "f", "system.posix_acl_access", acl)
    os.setxattr(tree / "d/e", "system.posix_acl_default", acl)
    os.mkfifo(tree / "d/e/pipe")
    (tree / "d/e/plain").mkdir()
    for heir in ("d/e/g", "d/e/pipe", "d/e/plain"):
        for name in os.listxattr(tree / heir):
            if name.startswith("system."):
                os.removexattr(tree / heir, name)
    os.mkdir(tree / "d/e/heir")
    os.mknod(tree / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(tree / "fifo", 0o600)
    os.symlink("/etc/passwd", tree / "link")
    os.setxattr(tree / "link", "trusted.l", b"l", follow_symlinks=False)
    os.link(tree / "f", tree / "hard")
    os.link(tree / "null", tree / "d/null")
    with (tree / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    for number, path in enumerate(sorted(tree.rglob("*"))):
        os.chown(path, 1000 + number, 2**32 - 2 - number, follow_symlinks=False)
    (tree / "suid").chmod(0o6755)
    os.setxattr(tree / "suid", "security.capability", CAPABILITY)
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number), follow_symlinks=False)


def test_all_that_a_layer_can_carry_goes_round(place: Path) -> None:
    old, new, copy, whole = (place / name for name in ("old", "new", "copy", "whole"))
    for path in (old, copy, whole):
        path.mkdir()
        (path / "gone").mkdir()
        (path / "gone/f").touch()
        (path / "f").write_text("before")
    new.mkdir()
    populate(new)
    os.setxattr(new / "d", "trusted.overlay.opaque", b"y")
    size, archive = work(Verb.DIFF, new, old)
    assert size == len(archive)
    os.removexattr(new / "d", "trusted.overlay.opaque")
    assert work(Verb.APPLY, copy, data=archive)[0] == len("f" + "d/e/g" + "suid") + (64 << 20)
    assert seen(str(copy)) == seen(str(new))
    assert (copy / "f").stat().st_ino == (copy / "hard").stat().st_ino
    assert (copy / "sparse").stat().st_blocks * 512 <= 128 << 10
    times = [{path.relative_to(tree): path.lstat().st_mtime_ns for path in tree.rglob("*")} for tree in (copy, new)]
    assert times[0] == times[1]
    assert json.loads(work(Verb.CHANGES, copy, new)[1]) == {"Changes": []}
    _, everything = work(Verb.DIFF, new)
    assert b"SCHILY.xattr.trusted.t=t" in everything
    assert b"SGI_ACL" not in everything
    (whole / "f").unlink()
    subprocess.run(["rm", "-r", whole / "gone"], check=True)
    work(Verb.APPLY, whole, data=everything)
    assert seen(str(whole)) == seen(str(new))


def test_changes_and_their_size(place: Path) -> None:
    old, new = place / "old", place / "new"
    for tree in (old, new):
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/gone").touch()
    (new / "etc/gone").unlink()
    (new / "etc/n\xe9w\udcff").write_text("123")
    os.link(new / "etc/n\xe9w\udcff", new / "second")
    (new / "link").symlink_to("12345")
    size, output = work(Verb.CHANGES, new, old)
    assert json.loads(output) == {
        "Changes": [
            {"Path": "/etc", "Kind": 0},
            {"Path": "/etc/gone", "Kind": 2},
            {"Path": "/etc/n\xe9w\ufffd", "Kind": 1},
            {"Path": "/link", "Kind": 1},
            {"Path": "/second", "Kind": 1},
        ]
    }
    assert (size, work(Verb.SIZE, new, old)) == (5, (8, b""))


def test_ids_are_mapped_both_ways(place: Path) -> None:
    maps: dict[str, Any] = {"uid_map": ((0, 100000, 1000),), "gid_map": ((0, 200000, 1000),)}
    work(Verb.APPLY, place, data=tar(member("parent/f", b"x", uid=5, gid=6)), **maps)
    for path, ids in (("parent", (100000, 200000)), ("parent/f", (100005, 200006))):
        assert ((place / path).stat().st_uid, (place / path).stat().st_gid) == ids
    with tarfile.open(fileobj=io.BytesIO(work(Verb.DIFF, place, **maps)[1])) as archive:
        assert [(info.uid, info.gid) for info in archive] == [(0, 0), (5, 6)]
    with pytest.raises(InvalidValue, match="the layer: g belongs to user 1000, which is not in the id map"):
        work(Verb.APPLY, place, data=tar(member("g", uid=1000)), **maps)
    (place / "h").touch()
    with pytest.raises(InvalidValue, match="the layer: h belongs to user 0, which is not in the id map"):
        work(Verb.DIFF, place, **maps)


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        bz2.compress,
        lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    ],
    ids=["gzip", "xz", "bzip2", "zstd"],
)
def test_compressed_layers(root: Path, pack: Callable[[bytes], bytes]) -> None:
    archive = pack(tar(member("f", os.urandom(300_000))))
    assert work(Verb.APPLY, root, data=archive)[0] == 300_000
    with pytest.raises(InvalidValue, match="unexpected end of"):
        work(Verb.APPLY, root, data=archive[:-40])
    damaged = archive[:100_000] + bytes(1000) + archive[101_000:]
    with pytest.raises(InvalidValue, match=r"corrupt|checksum|data"):
        work(Verb.APPLY, root, data=damaged)


def reported_tar(
    verb: Verb, root: Path, parent: Path | None = None, data: bytes = b"", **fields: Any
) -> tuple[TarDigest, bytes]:
    """The tar that a worker reports, and what it wrote."""
    with working(verb, root, parent, digest=True, **fields) as (worker, report):
        output, _ = worker.communicate(data)
        return parse_tar(os.read(report, 1 << 16)), output


@pytest.mark.parametrize(
    ("compression", "unpack"),
    [
        ("", bytes),
        ("gzip", gzip.decompress),
        ("zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ],
)
def test_a_diff_and_its_digest(place: Path, tmp_path: Path, compression: str, unpack: Callable[[bytes], bytes]) -> None:
    """What is applied has the digest of what was written, also where the archive goes on after its end."""
    (place / "f").write_bytes(bytes(700_000))
    tar_digest, layer = reported_tar(Verb.DIFF, place, compression=compression)
    plain = unpack(layer)
    assert tar_digest == TarDigest(len(plain), f"sha256:{hashlib.sha256(plain).hexdigest()}")
    target = tmp_path / "target"
    target.mkdir()
    longer = plain + bytes(100_000)
    for archive, content in ((layer, plain), (gzip.compress(longer), longer)):
        expected = TarDigest(len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
        assert reported_tar(Verb.APPLY, target, data=archive)[0] == expected
        assert (target / "f").stat().st_size == 700_000


def test_times_of_a_reproducible_diff(place: Path) -> None:
    for name in ("upper", "lower"):
        (place / name).mkdir()
    (place / "lower/gone").touch()
    for name, seconds in (("old", 5), ("new", 3_000_000_000)):
        (place / "upper" / name).touch()
        os.utime(place / "upper" / name, (seconds, seconds))
    newest = 1_700_000_000 * 10**9
    _, layer = work(Verb.DIFF, place / "upper", place / "lower", whiteout_ns=0, newest_ns=newest)
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert {info.name: info.mtime for info in archive} == {".wh.gone": 0, "new": 1_700_000_000, "old": 5}


@pytest.mark.parametrize("data", [b"x" * 5000, bytes(511), tar(member("f", b"x"))[:512]])
def test_what_is_no_archive(root: Path, data: bytes) -> None:
    with pytest.raises(InvalidValue, match="the layer"):
        work(Verb.APPLY, root, data=data)


def test_errors_without_any_file_to_load(root: Path, memory: Path) -> None:
    """Names that need escaping, a full file system, a limit, attributes that nobody knows."""
    odd = "\udcff\x01\u202e" + "n" * 150
    with pytest.raises(InvalidValue, match=r"\\xff\\x01\\u202en+… \(\d+ bytes\)|\\xff.*does not exist"):
        apply(root, member(odd, type=HARDLINK, linkname=odd))
    with pytest.raises(NoDataSpace, match="no space left for the file big"):
        apply(memory, member("big", os.urandom(4 << 20)))
    with pytest.raises(InvalidValue, match="more than 2 entries"):
        work(Verb.APPLY, root, data=tar(member("a"), member("b"), member("c")), max_entries=2)
    pax = {"SCHILY.xattr.bogus.name": "x"}
    with working(Verb.APPLY, root) as (worker, report):
        _, words = worker.communicate(tar(member("f", pax_headers=pax)))
        assert b"skipped the attribute bogus.name of f" in words
        assert parse_report(os.read(report, 4096)) == 0


def test_warnings_do_not_fill_a_log(root: Path) -> None:
    for number in range(300):
        (root / f".wh.{number}").touch()
    with working(Verb.DIFF, root) as (worker, _):
        _, words = worker.communicate()
    assert len(words.splitlines()) == 100


def test_the_input_is_read_to_its_end_after_a_failure(root: Path) -> None:
    with working(Verb.APPLY, root) as (worker, report):
        assert worker.stdin
        written = 0
        for _ in range(100):
            written += os.write(worker.stdin.fileno(), b"x" * (1 << 20))
        assert written == 100 << 20
        worker.stdin.close()
        assert worker.wait(PATIENCE) == 1
        with pytest.raises(InvalidValue, match="not a tar archive"):
            parse_report(os.read(report, 4096))


def test_more_than_a_tar_is_read_too(root: Path) -> None:
    with pytest.raises(InvalidValue, match="has data after the end of the tar"):
        work(Verb.APPLY, root, data=tar(member("f")) + bytes(70 << 20))
    assert work(Verb.APPLY, root, data=tar(member("f")) + bytes(1 << 20))[0] == 0


def test_a_diff_that_fails_first_writes_nothing(root: Path) -> None:
    (root / "f").write_text("x")
    for broken in ("root", "parent"):
        report, theirs = os.pipe()
        with detached(root) as tree, open("/etc/passwd", "rb") as file:
            fds = (tree, file.fileno()) if broken == "parent" else (file.fileno(), tree)
            job = Job(Verb.DIFF, fds[0], "the layer", parent=fds[1])
            done = subprocess.run(
                job.argv(theirs),
                env=job.environment(),
                pass_fds=job.descriptors(theirs),
                capture_output=True,
                check=False,
            )
            os.close(theirs)
            assert (done.returncode, done.stdout) == (1, b"")
            with pytest.raises(DmthinError, match=r"the layer: cannot read \.:"):
                parse_report(os.read(report, 4096))
        os.close(report)


def test_a_diff_that_fails_later_has_no_end(place: Path) -> None:
    (place / "a").write_bytes(os.urandom(3 << 20))
    os.chown(place / "a", 100, 100)
    (place / "b").touch()
    with working(Verb.DIFF, place, uid_map=((0, 100, 1),)) as (worker, report):
        output, _ = worker.communicate()
        with pytest.raises(InvalidValue, match="b belongs to user 0"):
            parse_report(os.read(report, 4096))
    assert len(output) >= 3 << 20
    assert output[-1024:] != bytes(1024)


def test_a_failpoint_ends_it_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third edge is before the second entry."""
    monkeypatch.setenv("DMTHIN_FAILPOINT", "3")
    with working(Verb.APPLY, root) as (worker, report):
        worker.communicate(tar(member("a"), member("b")))
        assert worker.returncode == 137
        with pytest.raises(KernelError, match="died without a report"):
            parse_report(os.read(report, 4096))
    assert os.listdir(root) == ["a"]


def test_no_job() -> None:
    for arguments in ([], ["{}"], ["a", "b"]):
        done = subprocess.run(
            [sys.executable, "-m", "dmthin.layers.worker", *arguments], capture_output=True, check=False
        )
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr


def test_four_at_a_time(place: Path) -> None:
    def one(number: int) -> bytes:
        root, copy = place / f"root{number}", place / f"copy{number}"
        root.mkdir()
        copy.mkdir()
        archive = tar(*(member(f"d{n % 7}/f{n}", bytes([number]) * n) for n in range(300)))
        assert work(Verb.APPLY, root, data=archive)[0] == sum(range(300))
        diff = work(Verb.DIFF, root, copy)[1]
        work(Verb.APPLY, copy, data=diff)
        assert seen(str(copy)) == seen(str(root))
        return diff

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(one, range(4)))
    assert len({len(result) for result in results}) == 1


def test_many_entries_in_little_memory(tmp_path: Path) -> None:
    """100 000 entries; what stays in memory are the names that an opaque mark would spare."""
    entries = 100_000
    target = tmp_path / "memory"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g,nr_inodes=400k,mode=755", "many", target], check=True)
    try:
        with working(Verb.APPLY, target) as (worker, report):
            assert worker.stdin
            writer = TarWriter(worker.stdin)
            for number in range(entries):
                writer.add(Entry(b"d%d/file-with-a-name-%d" % (number % 200, number), EntryType.FILE, 0o644))
            worker.stdin.flush()
            until((target / f"d{(entries - 100) % 200}/file-with-a-name-{entries - 100}").exists)
            assert peak(child_of(worker)) < 70 << 20
            writer.end()
            worker.stdin.close()
            assert worker.wait(PATIENCE) == 0
            assert parse_report(os.read(report, 4096)) == 0
        with working(Verb.DIFF, target) as (worker, report):
            assert worker.stdout
            highest = total = 0
            while piece := worker.stdout.read(1 << 22):
                if not total:
                    child = child_of(worker)
                total += len(piece)
                highest = max(highest, peak(child))
            assert worker.wait(PATIENCE) == 0
            assert parse_report(os.read(report, 4096)) == total > entries * 512
            assert highest < 60 << 20
    finally:
        subprocess.run(["umount", target], check=True)


def peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes; 0 if it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


def test_a_tree_in_use_is_compared(place: Path) -> None:
    """Files that come, change, are replaced and go while a diff is made: it is an archive still."""
    (place / "d").mkdir()
    over = threading.Event()

    def busy() -> None:
        number = 0
        while not over.is_set():
            number += 1
            path = place / f"d/f{number % 50}"
            path.write_bytes(b"x" * (number % 70_000))
            if number % 3 == 0:
                path.rename(place / f"d/f{(number + 25) % 50}")
            if number % 5 == 0:
                path.unlink(missing_ok=True)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(10):
            size, archive = work(Verb.DIFF, place)
            with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
                assert "d" in reader.getnames()
            assert size == len(archive)
    finally:
        over.set()
        thread.join()
