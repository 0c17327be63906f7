"""An initramfs with one task: load modules, mount the host's / over 9p, hand over to the guest's init."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmlib.request import VmError

_INIT = """\
#!/bin/busybox sh
busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do [ ! -e $module ] || busybox insmod $module; done
{then}
"""
_THEN_BOOT = """\
busybox mount -t 9p -o ro,{options} {tag} /root && exec busybox switch_root /root {init}
echo "vm: cannot mount the root"
busybox poweroff -f
"""
_THEN_STOP = "busybox poweroff -f\n"
_FOLDER, _FILE = 0o040755, 0o100755


def booting(unpacked: Path, modules: Iterable[Path], init: Path, tag: str, options: str) -> bytes:
    """The initramfs of a guest, which loads the modules in the order given; `unpacked` holds busybox."""
    return _archive(unpacked, modules, _THEN_BOOT.format(init=init, tag=tag, options=options))


def stopping(unpacked: Path) -> bytes:
    """An initramfs that powers off at once: it tells whether a machine can boot at all."""
    return _archive(unpacked, (), _THEN_STOP)


def module_files(unpacked: Path, version: str, modules: Sequence[str]) -> list[Path]:
    """The files of the modules and of what they need, in the order in which they load."""
    done = subprocess.run(
        ["modprobe", "-d", str(unpacked), "-S", version, "--show-depends", "-a", *modules],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise VmError(f"the kernel {version} lacks a module: {done.stderr.strip()}")
    lines = (line.split() for line in done.stdout.splitlines())
    return list(dict.fromkeys(Path(words[1]) for words in lines if words[0] == "insmod"))


def _archive(unpacked: Path, modules: Iterable[Path], then: str) -> bytes:
    entries = [_entry(folder, _FOLDER, b"") for folder in ("bin", "dev", "modules", "root")]
    entries.append(_entry("bin/busybox", _FILE, (unpacked / "bin" / "busybox").read_bytes()))
    entries.append(_entry("init", _FILE, _INIT.format(then=then).encode()))
    for position, module in enumerate(modules):
        entries.append(_entry(f"modules/{position:03d}-{module.name}", _FILE, module.read_bytes()))
    return b"".join([*entries, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One file in the "newc" form that the kernel unpacks: thirteen numbers, the name, the content."""
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
