"""Mounts by system call, and the mount table: mount(2), umount2(2), proc_pid_mountinfo(5)."""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dmthin.kernel import devnumber
from dmthin.os_errors import MOUNT, PROC, UNMOUNT, explain, os_failure
from dmthin.steps import step

_MS = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "sync": 0x10, "dirsync": 0x80, "noatime": 0x400,
       "nodiratime": 0x800, "relatime": 0x200000, "strictatime": 0x1000000, "lazytime": 0x2000000}  # fmt: skip
_CLEARED = {"rw": 0x1, "suid": 0x2, "dev": 0x4, "exec": 0x8, "async": 0x10, "atime": 0x400, "diratime": 0x800}
_MS_BIND = 0x1000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_OPTION = re.compile(r'(?:"[^"]*"|[^,"])+')
_OCTAL = re.compile(r"\\([0-7]{3})")
_SPECIAL = re.compile(r"[ \t\n\\]")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of a mountinfo file. `dev` is an `os.makedev` number; `root` is the mounted part of the file system."""

    mount_id: int
    parent_id: int
    dev: int
    root: str
    target: str
    options: str
    shared: bool
    fs_type: str
    source: str


def table(process: int | str = "self") -> list[Mount]:
    """Return the mounts in the namespace of a process, in the order in which they were made; none if it has ended."""
    return [_parse(line) for line in _lines(process)]


def of_device(dev: int, process: int | str = "self") -> list[Mount]:
    """Return the mounts of one file system, the newest last."""
    wanted = f" {devnumber.written(dev)} "
    return [_parse(line) for line in _lines(process) if wanted in line[:48]]


def at(target: Path) -> list[Mount]:
    """Return the mounts at exactly this place, the newest last."""
    wanted = f" {_escape(str(target))} "
    mounts = [_parse(line) for line in _lines("self") if wanted in line]
    return [mount for mount in mounts if mount.target == str(target)]


def under(folder: Path) -> list[Mount]:
    """Return the mounts at or below a folder in an order in which they can be unmounted: innermost and newest first."""
    inside = f"{folder}/"
    return [mount for mount in reversed(table()) if mount.target == str(folder) or mount.target.startswith(inside)]


def mount(source: str, target: Path, fs_type: str, options: str = "") -> None:
    """Mount a file system. `options` are those of mount(8), comma-separated; what is no flag is for the file system.

    Raise InUse if the target is a mount of the same device, InvalidValue for a bad superblock or option, NotFound,
    NotPermitted, KernelError.
    """
    flags, data = split_options(options)
    with step("mount", target):
        _mount(source, target, fs_type, flags, data)


def split_options(options: str) -> tuple[int, str]:
    """Return the flags of mount(2), and the other options for the file system. A comma in quotes separates nothing."""
    flags, data = 0, []
    for option in _OPTION.findall(options):
        if option in _MS:
            flags |= _MS[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option != "defaults":
            data.append(option)
    return flags, ",".join(data)


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount the newest mount at `target`; `lazy` detaches it now, and its last user ends it.

    Raise InUse if it is busy, NotFound if nothing is mounted there, NotPermitted, KernelError.
    """
    with step("unmount", target):
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(target), flags):
            raise explain(ctypes.get_errno(), f"cannot unmount {target}", UNMOUNT)


def ensure_shared(folder: Path) -> None:
    """Let mounts below `folder` propagate to the mount namespaces of other daemons, mount_namespaces(7).

    systemd makes all mounts of the host shared. If the mount that the folder lies in is private, the folder becomes a
    shared mount of its own. Raise NotPermitted, KernelError.
    """
    if not (around := _mount_of(folder)) or around.shared:
        return
    if around.target != str(folder):
        with step("mount", folder):
            _mount(str(folder), folder, "", _MS_BIND, "")
    _mount("none", folder, "", _MS_SHARED, "")


def _mount_of(folder: Path) -> Mount | None:
    """Return the mount in which a folder lies: the longest target above it, the newest of equals."""
    best: Mount | None = None
    for entry in table():
        inside = entry.target == "/" or str(folder) == entry.target or str(folder).startswith(f"{entry.target}/")
        if inside and (best is None or len(entry.target) >= len(best.target)):
            best = entry
    return best


def _mount(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), fs_type.encode(), flags, os.fsencode(data))
    if _libc.mount(*arguments):
        raise explain(ctypes.get_errno(), f"cannot mount {source} on {target}", MOUNT)


def _lines(process: int | str) -> list[str]:
    """Return the lines of a mountinfo file. Only a newline ends one: the kernel does not escape a carriage return.

    There are none of a process that has ended. Raise Unavailable (no /proc): no mounts would look like a volume that
    nothing uses.
    """
    try:
        content = Path(f"/proc/{process}/mountinfo").read_bytes()
    except OSError as error:
        if process == "self":
            raise os_failure(error, "read the mount table", PROC) from None
        return []
    return os.fsdecode(content).split("\n")[:-1]


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    mount_id, parent_id, number, root, target, options, *optional = before.split(" ")
    fs_type, source, *_ = after.split(" ")
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        dev=devnumber.parse(number),
        root=_unescape(root),
        target=_unescape(target),
        options=options,
        shared=any(field.startswith("shared:") for field in optional),
        fs_type=fs_type,
        source=_unescape(source),
    )


def _escape(text: str) -> str:
    """Escape a path as the kernel does (show_mountinfo): separators of fields and lines, and backslashes, in octal."""
    return _SPECIAL.sub(lambda match: f"\\{ord(match[0]):03o}", text)


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
