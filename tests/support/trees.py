"""Random trees of files, and all that can be seen of a tree."""

import os
import stat
import struct
from pathlib import Path
from typing import Any

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service, effective and permitted (struct vfs_cap_data of linux/capability.h)."""


def build(top: bytes, tree: Any) -> None:
    """Make the tree below `top`, which exists; modes leave its owner what tar needs."""
    linkable: list[bytes] = []
    settle: list[tuple[bytes, int, int]] = []
    todo = [(top, tree)]
    while todo:
        path, (_, children, mode, when) = todo.pop()
        settle.append((path, mode | 0o700, when))
        for name, node in children.items():
            inner = path + b"/" + name
            match node:
                case ("directory", *_):
                    os.mkdir(inner)
                    todo.append((inner, node))
                case ("file", data, mode, when):
                    Path(os.fsdecode(inner)).write_bytes(data)
                    settle.append((inner, mode | 0o400, when))
                    linkable.append(inner)
                case ("sparse", pieces, mode, when):
                    with open(inner, "wb") as file:
                        for hole, length in pieces:
                            file.seek(hole * 4096, os.SEEK_CUR)
                            file.write(b"\x5a" * length)
                        file.truncate(file.tell() + 70_000)
                    settle.append((inner, mode | 0o400, when))
                case ("symlink", target, when):
                    os.symlink(target, inner)
                    os.utime(inner, ns=(when, when), follow_symlinks=False)
                case ("hardlink", index) if linkable:
                    os.link(linkable[index % len(linkable)], inner)
                case ("fifo", mode, when):
                    os.mkfifo(inner)
                    settle.append((inner, mode, when))
    for path, mode, when in reversed(settle):
        os.chmod(path, mode)
        os.utime(path, ns=(when, when))


def snapshot(top: bytes, *, whole_seconds: bool = False) -> dict[bytes, tuple[object, ...]]:
    """All that a user can see of a tree: type, mode, time, content or target, the first name of its inode."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    paths = [top]
    for folder, inner, files in os.walk(top):
        paths += [os.path.join(folder, name) for name in inner + files]
    for path in sorted(paths):
        info = os.lstat(path)
        content: object = None
        mode = stat.S_IMODE(info.st_mode)
        if stat.S_ISREG(info.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content, mode = os.readlink(path), 0
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            content = info.st_rdev
        when = info.st_mtime_ns // 10**9 if whole_seconds else info.st_mtime_ns
        relative = path[len(top) :]
        name = relative if stat.S_ISDIR(info.st_mode) else first.setdefault(info.st_ino, relative)
        found[relative] = (stat.S_IFMT(info.st_mode), mode, when, content, name)
    return found


def seen(top: str) -> dict[bytes, tuple[object, ...]]:
    """A tree as the law promises it: not which names share an inode, nor the times that a diff need not carry."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path, (kind, mode, when, content, _) in snapshot(os.fsencode(top)).items():
        whole = os.fsencode(top) + path
        info = os.lstat(whole)
        xattrs = [
            (name, os.getxattr(whole, name, follow_symlinks=False))
            for name in sorted(os.listxattr(whole, follow_symlinks=False))
        ]
        if kind == stat.S_IFDIR:
            when = None
        found[path] = kind, mode, when, content, info.st_uid, info.st_gid, xattrs
    root = found.pop(b"")
    assert root[0] == stat.S_IFDIR
    return found
