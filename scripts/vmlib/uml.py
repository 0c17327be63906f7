"""User-mode-linux: a kernel that is a program. No root needed, one CPU, ready in two seconds."""

import os
import shutil
from functools import partial
from pathlib import Path

from vmlib import systems
from vmlib.guest import Layout, Machine, Share, escaped, laid_out
from vmlib.host import run_guest
from vmlib.processor import own_processor
from vmlib.request import Request

SETUP: tuple[str, ...] = ("--vm", "uml")

_MODULES = (
    *("overlay", "loop"),
    *("dm-thin-pool", "dm-snapshot", "dm-flakey", "dm-delay", "dm-dust", "dm-log-writes"),
)


def run(request: Request) -> int:
    """Boot, run the command, power off; the command's exit status."""
    machine = Machine(
        engine="uml",
        modules_folder=(request.system or Path("/")) / "usr/lib/uml/modules",
        modules=_MODULES,
        disk="/dev/ubda",
        mount_line=partial(_mount_line, name="hostfs=" if request.system else ""),
        udev=request.udev,
        systemd=request.systemd,
        system=request.system,
    )
    with laid_out(request, machine) as layout, own_processor() as processor:
        environment = {"PATH": os.environ["PATH"], "TMPDIR": _memory_folder(request, layout)}
        line = ["taskset", "--cpu-list", str(processor), *_kernel_line(request, layout)]
        return run_guest(line, environment, layout.channel, request)


def _mount_line(share: Share, name: str) -> str:
    """A line of fstab. Up to Linux 6.9 hostfs takes the folder alone as its option, since then it has a `name`."""
    mode = "rw" if share.writable else "ro"
    return f"hostfs {escaped(share.place)} hostfs {mode},X-mount.mkdir,{name}{escaped(share.source)}"


def _kernel_line(request: Request, layout: Layout) -> list[str]:
    system = request.system
    return [
        *(["linux.uml"] if system is None else systems.kernel(system)),
        f"mem={request.memory >> 20}M",
        "rootfstype=hostfs",
        f"rootflags={system or '/'}",
        "ro",
        f"ubd0={layout.disk}",
        "con=null",
        "con0=null,fd:1",  # the words of the kernel and of the first process: our log
        "oops=panic",
        "apparmor=0",  # its tools are not there, and dockerd wants them where the kernel has it
        f"uml_dir={layout.work}/uml",
        *([f"init={layout.init}"] if system is None else systems.first_words(layout.work)),
    ]


def _memory_folder(request: Request, layout: Layout) -> str:
    """The guest's memory is a file, and every page it touches is written back unless that lies on a tmpfs."""
    shared = Path("/dev/shm")
    try:
        usable = not os.statvfs(shared).f_flag & os.ST_NOEXEC and os.access(shared, os.W_OK)
        if usable and shutil.disk_usage(shared).free >= request.memory:
            return str(shared)
    except OSError:
        pass
    return str(layout.work)
