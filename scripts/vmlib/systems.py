"""A guest whose root is another Debian release: its kernel, and how the first process comes into that root."""

import shutil
from pathlib import Path

from vmlib.request import CHECKOUT, VmError

_KERNEL = "usr/bin/linux.here"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_DMTHIN = """\
#!/usr/bin/python3
import sys
from dmthin.cli import main
sys.exit(main())
"""


def kernel(system: Path) -> list[str]:
    """The words that start the release's user-mode-linux on this machine, whose libc may be too old for it.

    It is a copy (scripts/setuplib/systems.sh) that looks for its loader below the current folder.
    """
    if not (system / _KERNEL).exists():
        raise VmError(f"there is no system in {system}")
    return ["env", f"--chdir={system}", f"LD_LIBRARY_PATH={system / _LIBRARIES}", str(system / _KERNEL)]


def first_words(work: Path) -> list[str]:
    """What ends the kernel's command line: its first process is a shell, which finds `work` at /mnt and goes on there.

    The release's root file system is the root, and has no folder of the host's but itself.
    """
    script = f"mount -t hostfs -o ro,hostfs={work} hostfs /mnt && exec /bin/sh /mnt/enter-system {work}"
    return ["init=/bin/sh", "--", "-c", f'"{script}"']


def lay_out(work: Path, modules: Path) -> None:
    """Add to the folder that a guest boots from what it takes to enter the system: `added` is copied into its root."""
    shutil.copy(Path(__file__).with_name("enter-system"), work)
    (work / "kmod/lib").mkdir(parents=True)
    (work / "kmod/lib/modules").symlink_to("/usr/lib/uml/modules")
    programs, packages = work / "added/usr/bin", work / "added/usr/lib/python3/dist-packages"
    for folder in (programs, packages):
        folder.mkdir(parents=True)
    (programs / "dmthin").write_text(_DMTHIN)
    (programs / "dmthin").chmod(0o755)
    (programs / "python").symlink_to("python3")
    (packages / "dmthin.pth").write_text(f"{CHECKOUT}\n")
