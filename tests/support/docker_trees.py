"""What is really in an image: every file of its top layer with all that a tar can carry of it."""

import errno
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from enginelib.docker import Docker, Plugin
from tests.support.archives import chain_of

CAPABILITY = "security.capability"
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
"""A file capability as the kernel keeps it (revision 2): cap_net_raw, permitted and effective."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `links` are the names it has in the tree, `content` is a digest, a link's target, a device's number."""

    mode: int
    owner: tuple[int, int]
    mtime: int
    content: str
    links: tuple[str, ...]
    attributes: tuple[tuple[str, bytes], ...]


def tree(root: Path) -> dict[str, Entry]:
    """Every file below a folder, by its path."""
    names: dict[int, list[str]] = {}
    found: dict[str, os.stat_result] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # overlayfs lists a whiteout in a directory that only one layer has
                continue
            found[os.path.relpath(path, root)] = status
            if not stat.S_ISDIR(status.st_mode):
                names.setdefault(status.st_ino, []).append(os.path.relpath(path, root))
    return {
        name: Entry(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            mtime=int(status.st_mtime),
            content=_content(root / name, status),
            links=tuple(sorted(names.get(status.st_ino, [name]))),
            attributes=tuple(
                (key, os.getxattr(root / name, key, follow_symlinks=False))
                for key in sorted(os.listxattr(root / name, follow_symlinks=False))
            ),
        )
        for name, status in found.items()
    }


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        return _digest(path)
    return str(status.st_rdev)


def _digest(path: Path) -> str:
    """Return a digest of a file's size and of what is not zero in it; holes take no time."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole is left
            data = os.pread(file.fileno(), _CHUNK, at)
            if data.strip(b"\0"):
                found.update(b"%d:" % at + data.rstrip(b"\0"))
            at += _CHUNK
    return f"{size} bytes, {found.hexdigest()}"


def layers_of(docker: Docker, image: str) -> list[str]:
    """The graphdriver's ids of an image's layers, the lowest first."""
    records = docker.data_root / "image" / docker.driver / "layerdb"
    chain = chain_of(json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image)))
    return [(records / identity.replace(":", "/") / "cache-id").read_text().strip() for identity in chain]


def top_layer(docker: Docker, image: str) -> str:
    """The graphdriver's id of an image's uppermost layer."""
    return layers_of(docker, image)[-1]


@contextmanager
def opened(docker: Docker, image: str) -> Iterator[Path]:
    """An image's files, without a container that dockerd would put its own into."""
    plugin = Plugin(docker.plugin)
    layer = top_layer(docker, image)
    try:
        yield Path(plugin.ok("Get", ID=layer)["Dir"])
    finally:
        plugin.ok("Put", ID=layer)
        plugin.close()


def files_of(docker: Docker, image: str) -> dict[str, Entry]:
    """Every file of an image."""
    with opened(docker, image) as root:
        return tree(root)


def merged(docker: Docker, image: str) -> dict[str, Entry]:
    """Every file of an image of a dockerd on the overlay2 driver, as the kernel shows them."""
    place, empty = docker.folder / "merged", docker.folder / "empty"
    for folder in (place, empty):
        folder.mkdir(exist_ok=True)
    words = docker("image", "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}", image)
    lower = ":".join([*(word for word in words.strip().split(":") if word != "<no value>"), str(empty)])
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", place], check=True)
    try:
        return tree(place)
    finally:
        subprocess.run(["umount", place], check=True)


def without_directory_times(files: dict[str, Entry]) -> dict[str, Entry]:
    """Return files without what no layer has of a directory that has only another time, or is not listed."""
    return {path: replace(entry, mtime=0) if stat.S_ISDIR(entry.mode) else entry for path, entry in files.items()}


def odd_tar() -> bytes:
    """A tar of whatever a layer may hold."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_600_000_000, 0o644
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))

        def folder(name: str, mode: int = 0o755) -> None:
            add(name, type=tarfile.DIRTYPE, mode=mode)

        for name in ("etc", "odd", "odd/" + "long" * 40):
            folder(name)
        folder("odd/sticky", 0o1777)
        folder("odd/closed", 0o700)
        add("odd/setuid", b"#!/bin/sh\n", mode=0o4755)
        add("odd/setgid", b"#!/bin/sh\n", mode=0o2755)
        add("odd/owned", b"mine\n", uid=1234, gid=5678)
        add("odd/large-id", b"far\n", uid=3_000_000_000, gid=3_000_000_001)
        add("odd/capable", b"#!/bin/sh\n", mode=0o755, pax_headers=_attributes({CAPABILITY: NET_RAW}))
        add("odd/user", b"", pax_headers=_attributes({"user.word": b"kept"}))
        add("odd/linked", b"one file, two names\n")
        add("odd/linked-too", type=tarfile.LNKTYPE, linkname="odd/linked")
        add("odd/link", type=tarfile.SYMTYPE, linkname="linked", mode=0o777)
        add("odd/dangling", type=tarfile.SYMTYPE, linkname="/nowhere", mode=0o777)
        add("odd/fifo", type=tarfile.FIFOTYPE)
        add("odd/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("odd/empty")
        add("odd/holes", b"\0" * 3_000_000 + b"end")
        add("odd/" + "long" * 40 + "/" + "n" * 200, b"long\n")
        add("odd/sch\u00f6n \u732b", b"unicode\n")
    return buffer.getvalue()


def _attributes(values: dict[str, bytes]) -> dict[str, str]:
    """Extended attributes as PAX records; tarfile writes their bytes as they are."""
    return {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in values.items()}
