"""The holders of a device: processes that have it, or files on it, open; mounts in any namespace; devices above.

psutil lists processes and their names, but not open block devices and other mount namespaces, so those come from /proc
and /sys. This is slow, and only for error messages.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmthin.kernel import devnumber, mount

UNSEEN = "something in the kernel"
"""A holder that /proc does not show, such as a loop device or a file system of another namespace."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One holder of a device: a process, or with the `pid` 0 a mount or a device above. `how` says what it holds."""

    name: str
    pid: int
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.how})" if self.pid else f"{self.name} ({self.how})"


def of_device(dev: int) -> list[Holder]:
    """Return the holders of the block device `dev` (an `os.makedev` number), or of the file system on it.

    A mount in another namespace than ours is represented by one process of that namespace.
    """
    import psutil  # slow to load, and only needed for an error

    found = [Holder(path.name, 0, "a device above") for path in _block_folder(dev).glob("holders/*")]
    found += [Holder(entry.target, 0, "a mount") for entry in mount.of_device(dev)]
    namespaces = {_namespace("self")}
    for process in psutil.process_iter(["name"]):
        pid, name = process.pid, process.info["name"] or "?"
        if how := _use(pid, dev):
            found.append(Holder(name, pid, how))
        namespace = _namespace(pid)
        if namespace not in namespaces:
            namespaces.add(namespace)
            places = [entry.target for entry in mount.of_device(dev, pid)]
            if places:
                found.append(Holder(name, pid, f"mounted at {places[0]} in its mount namespace"))
    return found


def describe(dev: int, limit: int = 5) -> str:
    """Return the holders of a device in words, at most `limit` of them; UNSEEN if none was found."""
    found = [str(holder) for holder in of_device(dev)]
    more = [f"and {len(found) - limit} more"] if len(found) > limit else []
    return ", ".join(found[:limit] + more) or UNSEEN


def _use(pid: int, dev: int) -> str:
    """Return how a process uses a device, in words; empty if it does not."""
    for link, how in (("cwd", "its current folder"), ("root", "its root"), ("exe", "its program")):
        if _on_device(Path(f"/proc/{pid}/{link}"), dev):
            return how
    for descriptor in _entries(Path(f"/proc/{pid}/fd")):
        if _on_device(descriptor, dev):
            return f"has {_target(descriptor)} open"
    wanted = f" {os.major(dev):02x}:{os.minor(dev):02x} "
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""
    return "a mapped file" if wanted in maps else ""


def _on_device(path: Path, dev: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_dev == dev or status.st_rdev == dev


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return "a file"


def _namespace(process: int | str) -> str:
    return _target(Path(f"/proc/{process}/ns/mnt"))


def _block_folder(dev: int) -> Path:
    return Path(f"/sys/dev/block/{devnumber.written(dev)}")
