"""What user-mode-linux and QEMU have in common: the folder that a guest boots from, its mounts, its init."""

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmlib import disks, systems
from vmlib.host import Channel
from vmlib.request import CHECKOUT, OUT_IN_GUEST, Request, job_script

_CHANNEL_IN_GUEST = Path("/run/vm")
_MODULES_IN_GUEST = Path("/run/kmod/lib/modules")  # the host has another kernel, or no /lib/modules at all
_FIRST_MOUNTS = (
    "proc /proc proc nosuid,nodev,noexec",
    "sysfs /sys sysfs nosuid,nodev,noexec",
    "cgroup2 /sys/fs/cgroup cgroup2 nosuid,nodev,noexec",
    "tmpfs /run tmpfs mode=755",
    "tmpfs /tmp tmpfs mode=1777",
    "tmpfs /mnt tmpfs mode=755",
    "tmpfs /dev/shm tmpfs mode=1777,X-mount.mkdir",
    "devpts /dev/pts devpts gid=5,mode=620,ptmxmode=666,X-mount.mkdir",
)
_HIDDEN = tuple(map(Path, ("/run", "/tmp", "/mnt", "/dev", "/proc", "/sys", "/var/lib")))
"""Folders that lie under a mount of the guest's own: what it needs from the host there is mounted again."""
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")


@dataclass(frozen=True, slots=True)
class Share:
    """A folder of the host's, and the place where the guest sees it."""

    place: Path
    source: Path
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest's first process must know of the engine that it runs on."""

    engine: str
    modules_folder: Path
    modules: Sequence[str]
    disk: str
    mount_line: Callable[[Share], str]
    udev: bool
    systemd: bool = False
    first_mounts: Sequence[str] = ()
    system: Path | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A guest that is ready to boot. Its paths are plain: no space or comma that a command line reads."""

    work: Path
    channel: Channel
    shares: Sequence[Share]

    @property
    def init(self) -> Path:
        """The guest's first process."""
        return self.work / "init"

    @property
    def disk(self) -> Path:
        """The image of the disk at /var/lib."""
        return self.work / "disk"


@contextmanager
def laid_out(request: Request, machine: Machine) -> Iterator[Layout]:
    """Everything that a guest boots from, in a temporary folder."""
    parent = None if _PLAIN.fullmatch(tempfile.gettempdir()) else "/tmp"
    with tempfile.TemporaryDirectory(prefix="dmthin-vm-", dir=parent, ignore_cleanup_errors=True) as name:
        work = Path(name)
        channel = Channel.create(work / "channel", job_script(request, machine.engine))
        shutil.copy(Path(__file__).with_name("guest-init"), work / "init")
        (work / "init").chmod(0o755)
        disk = request.disk or work / "scratch.img"
        disks.ensure(disk)
        (work / "disk").symlink_to(disk)
        first = [
            Share(_CHANNEL_IN_GUEST, channel.folder, writable=True),
            Share(_MODULES_IN_GUEST, machine.modules_folder),
        ]
        if request.system is None:
            later = [Share(path, path) for path in hidden_paths(request.needed_paths())]
        else:
            systems.lay_out(work, machine.modules_folder)
            later = [Share(path, path) for path in outermost(request.needed_paths())]
        if request.out is not None:
            later.append(Share(OUT_IN_GUEST, request.out, writable=True))
        # Its Python writes what it compiles beside the checkout's modules, where that of another release is not.
        last = [_overlay(CHECKOUT, "checkout")] if request.system else []
        _write_fstab(work / "fstab", [*machine.first_mounts, *_FIRST_MOUNTS, *map(machine.mount_line, first)])
        _write_fstab(channel.folder / "fstab", [*_later_mounts(machine), *map(machine.mount_line, later), *last])
        if machine.systemd:  # its unit starts this, when a tmpfs hides the other one
            shutil.copy(work / "init", channel.folder)
        (channel.folder / "settings").write_text(_settings(machine))
        _write_modprobe(channel.folder / "modprobe")
        yield Layout(work, channel, [*first, *later])


def hidden_paths(needed: Iterable[Path]) -> list[Path]:
    """Those of the needed paths that the guest's own mounts would hide, outermost only."""
    return outermost(path for path in needed if any(folder in path.parents for folder in _HIDDEN))


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that lie below no other of them."""
    found: list[Path] = []
    for path in sorted(set(paths)):
        if not any(other in path.parents for other in found):
            found.append(path)
    return found


def _later_mounts(machine: Machine) -> list[str]:
    # All of another system lies under an overlay already.
    overlays = [] if machine.system else [_overlay(Path("/", name), name) for name in ("etc", "var")]
    # To zero the inode tables, as ext4 does in the background, would take the guest's processor.
    return [*overlays, f"{machine.disk} /var/lib ext4 noatime,noinit_itable"]


def _overlay(place: Path, name: str) -> str:
    """Let a folder be written, in memory; `name` is that of the folders which guest-init has made for it."""
    where = escaped(place)
    return f"overlay {where} overlay lowerdir={where},upperdir=/run/over/{name},workdir=/run/over/{name}.work"


def _settings(machine: Machine) -> str:
    chosen = {"udev": machine.udev, "systemd": machine.systemd}
    words = [f"{name}={'yes' if wanted else ''}\n" for name, wanted in chosen.items()]
    return f"modules={shlex.quote(' '.join(machine.modules))}\n{''.join(words)}"


def _write_modprobe(script: Path) -> None:
    """What the kernel calls when it misses a module."""
    script.write_text('#!/bin/sh\nPATH=/usr/sbin:/sbin exec modprobe -d /run/kmod "$@"\n')
    script.chmod(0o755)


def _write_fstab(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line} 0 0\n" for line in lines))


def escaped(path: Path) -> str:
    """A path as fstab(5) wants it."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", str(path))
