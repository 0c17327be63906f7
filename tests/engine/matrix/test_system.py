"""The guest itself: whichever system it is, the checkout is in it, and the kernel has what a store takes."""

import shutil
import subprocess
from pathlib import Path

import dmthin
from enginelib.daemons import SCRATCH, SYSTEM
from enginelib.waiting import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[3]


def output(*line: str) -> str:
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def test_the_guest_is_the_release() -> None:
    """sid calls itself by the name of the next release, so the recipe that the root was made by tells."""
    if SYSTEM:
        assert Path("/etc/dmthin-recipe").read_text().split()[0] == SYSTEM
    else:
        assert "VERSION_CODENAME=bookworm" in Path("/etc/os-release").read_text().splitlines()


def test_python_and_the_command_find_the_checkout() -> None:
    assert Path(dmthin.__file__).parent == CHECKOUT / "dmthin"
    assert output("dmthin", "--version").split()[-1] == dmthin.__version__
    if SYSTEM:
        assert [shutil.which(name) for name in ("python", "dmthin")] == ["/usr/bin/python", "/usr/bin/dmthin"]


def test_the_kernel_has_thin_pools_and_loops_with_direct_io() -> None:
    assert {"thin", "thin-pool"} <= {line.split()[0] for line in output("dmsetup", "targets").splitlines()}
    file = SCRATCH / "loop"
    file.touch()
    file.open("r+b").truncate(1 << 30)
    loop = output("losetup", "--direct-io=on", "--show", "--find", str(file)).strip()
    try:
        assert output("losetup", "--noheadings", "--output", "DIO", loop).strip() == "1"
    finally:
        output("losetup", "--detach", loop)
        file.unlink()


def test_what_is_written_to_the_root_stays_in_the_guest() -> None:
    folders = ["/etc", "/var", "/tmp"]
    if SYSTEM:
        folders += ["/usr", "/root", str(CHECKOUT)]
    for folder in folders:
        Path(folder, "new").touch()
        Path(folder, "new").unlink()
