"""udevd in a guest, as it runs on a real host."""

import os
import subprocess
from importlib.resources import files
from pathlib import Path


def install_rules() -> None:
    """What `dmthin system install` does, for this start of the machine only."""
    folder = Path("/run/udev/rules.d")
    folder.mkdir(parents=True, exist_ok=True)
    for rules in files("dmthin").joinpath("data", "udev").iterdir():
        (folder / rules.name).write_text(rules.read_text())
    subprocess.run(["udevadm", "control", "--reload"], check=True)


def settle() -> None:
    """Let what the last step left to udevd and the disk be done before the next is timed."""
    subprocess.run(["udevadm", "settle"], check=True)
    os.sync()
