"""The host's own kernel: every CPU and real speed, but a live machine. Only when it is asked for by name."""

import os
import subprocess
import tempfile
from pathlib import Path

from vmlib.host import run_here
from vmlib.request import Request, VmError

SETUP: tuple[str, ...] = ()


def run(request: Request) -> int:
    """Run the command on this machine, with a scratch folder that is gone afterwards; its exit status."""
    if os.geteuid() != 0:
        raise VmError("the native engine changes this machine's devices, and needs root")
    _require_thin_pool()
    with tempfile.TemporaryDirectory(prefix="dmthin-vm-", dir="/var/tmp") as scratch:
        return run_here(request, _environment(request, Path(scratch)))


def _require_thin_pool() -> None:
    # That /dev/mapper/control is there does not mean that a kernel stands behind it: only its answer tells.
    subprocess.run(["modprobe", "--quiet", "dm-thin-pool"], stdin=subprocess.DEVNULL, capture_output=True)
    targets = subprocess.run(["dmsetup", "targets"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if targets.returncode != 0:
        words = " ".join(targets.stderr.split())
        raise VmError(f"this machine's kernel has no device-mapper ({words}): try --engine uml")
    if not any(line.split()[:1] == ["thin-pool"] for line in targets.stdout.splitlines()):
        raise VmError("this machine's kernel has no thin-pool target: try --engine uml")


def _environment(request: Request, scratch: Path) -> dict[str, str]:
    environment = {
        **os.environ,
        **request.environment,
        "PATH": f"{request.venv}/bin:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(request.venv),
        "DMTHIN_VM": "native",
        "DMTHIN_VM_SCRATCH": str(scratch),
    }
    if request.out is not None:
        environment["DMTHIN_VM_OUT"] = str(request.out)
    return environment
