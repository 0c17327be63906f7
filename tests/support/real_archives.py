"""Archives that `scripts/setup --archives` has taken out of other programs' own tests, and what unpackers make of them.

Their names begin with the program whose tests they are of: libarchive, GNU tar, CPython.
"""

import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.layers.unpack import unpack
from enginelib.daemons import CACHE
from tests.support.docker_apply import docker_applies
from tests.support.docker_trees import Entry, tree

FOLDER = CACHE / "archives"
NAMES: Sequence[str] = sorted(
    str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file() and path.parent != FOLDER
)

assert NAMES, "scripts/setup --archives makes them"

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "gzip",  # which reads what compress writes
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x50\x2a\x4d\x18": "zstd",
}
Unpacker = Callable[[Path], tuple[bool, str]]
"""Fills a folder. Returns whether it refused the archive, and what it said."""

NO_DIFFERENCE = ""
ONLY_DMTHIN, ONLY_PEER, OTHER_FILES = "only dmthin takes it", "dmthin refuses it", "other files"


@dataclass(frozen=True, slots=True)
class Taken:
    """What an unpacker made of an archive: why it refused it, or all files. `said` are its words in either case."""

    refused: bool
    said: str
    files: dict[str, Entry]


def content(name: str) -> bytes:
    """Return an archive as it is, but for those of compress, which GNU tar alone reads."""
    data = (FOLDER / name).read_bytes()
    return (decompressed(data) or data) if data.startswith(b"\x1f\x9d") else data


def decompressed(data: bytes) -> bytes | None:
    """Return the tar in an archive, as dockerd decompresses it before the storage driver gets it; None if it cannot."""
    program = next((program for start, program in _COMPRESSED.items() if data.startswith(start)), None)
    if program is None:
        return data
    done = subprocess.run([program, "-dc"], input=data, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def now() -> int:
    """Return the earliest time of what is made from now on, in seconds; the kernel's clock for files lags a little."""
    return int(time.time()) - 1


def taken(root: Path, unpacker: Unpacker, since: int, *, modes: bool) -> Taken:
    """Let an unpacker fill a new folder; return what is in it, as `comparable` has it."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    refused, said = unpacker(root)
    return Taken(refused, said, comparable(tree(root), since, modes=modes))


def comparable(files: dict[str, Entry], since: int, *, modes: bool) -> dict[str, Entry]:
    """Return files without the times of directories that are not in the archive.

    They have that of the unpacking, which is not before `since`, in seconds since 1970; and without `modes` also a mode
    and an owner that are the unpacker's choice.
    """

    def of(entry: Entry) -> Entry:
        if not stat.S_ISDIR(entry.mode) or entry.mtime < since:
            return entry
        return replace(entry, mtime=0) if modes else replace(entry, mtime=0, mode=0, owner=(0, 0))

    return {path: of(entry) for path, entry in files.items()}


def dmthin_unpacks(data: bytes, *, layer: bool) -> Unpacker:
    """Return dmthin as an unpacker for `taken`."""

    def run(root: Path) -> tuple[bool, str]:
        try:
            unpack(BytesIO(data), root, layer=layer)
        except DmthinError as error:
            return True, str(error)
        return False, ""

    return run


def docker_unpacks(layer: bytes) -> Unpacker:
    """Return dockerd's unpacker of layers as an unpacker for `taken`."""

    def run(root: Path) -> tuple[bool, str]:
        said = docker_applies(root, layer)
        return bool(said), said

    return run


def gnu_tar_unpacks(path: Path) -> Unpacker:
    """Return this machine's tar as an unpacker of a file, which keeps all that it can."""

    def run(root: Path) -> tuple[bool, str]:
        keep = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--selinux")
        line = ["tar", "-xpf", str(path), "-C", str(root), *keep]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        return done.returncode != 0, done.stderr

    return run


def difference(ours: Taken, theirs: Taken) -> str:
    """Return in what dmthin and another unpacker differ, NO_DIFFERENCE if in nothing."""
    if ours.refused != theirs.refused:
        return ONLY_PEER if ours.refused else ONLY_DMTHIN
    return OTHER_FILES if not ours.refused and ours.files != theirs.files else NO_DIFFERENCE
