"""The scratch disk of a guest: a sparse file with ext4, made in a few hundredths of a second."""

import subprocess
import tempfile
from pathlib import Path

from vmlib.request import VmError

_SIZE = 40 << 30
_EXT4 = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"


def ensure(disk: Path) -> None:
    """Make the disk unless it is there; one that is kept is left as the last guest left it."""
    if disk.exists():
        return
    fresh = disk.with_name(f"{disk.name}.new")  # named right only when it is whole
    with fresh.open("wb") as image:
        image.truncate(_SIZE)
    with tempfile.TemporaryDirectory(prefix="dmthin-vm-") as content:
        (Path(content) / "scratch").mkdir()
        done = subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "65536", "-E", _EXT4, "-d", content, str(fresh)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        fresh.unlink()
        raise VmError(f"cannot make the disk {disk}: {done.stderr.strip()}")
    fresh.rename(disk)
