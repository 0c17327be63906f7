"""podman, which stores no root file systems here: dmthin makes them, and podman runs what is in a folder."""

import os
import subprocess
from pathlib import Path

from enginelib.daemons import CACHE, ENGINES, PATH, Failed

FOLDER = CACHE / "podman"
"""What scripts/setup --engines has unpacked."""


class Podman:
    """podman with all that it keeps in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        config = folder / "containers.conf"
        config.write_text(
            f'[engine]\nconmon_path = ["{FOLDER}/usr/bin/conmon"]\nhelper_binaries_dir = ["{FOLDER}/usr/lib/podman"]\n'
            f'cgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
            f'[engine.runtimes]\nrunc = ["{ENGINES}/usr/sbin/runc"]\n[network]\nnetwork_backend = "netavark"\n'
        )
        state = Path("/run", folder.name)
        self._line = [f"{FOLDER}/usr/bin/podman", "--root", str(folder / "root"), "--runroot", str(state)]
        self._environment = {**os.environ, "PATH": PATH, "CONTAINERS_CONF": str(config)}

    def __call__(self, *words: str) -> str:
        """The output of a command. Raises Failed."""
        line = [*self._line, "--storage-driver", "vfs", *words]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self._environment)
        if done.returncode:
            raise Failed(done.stderr + done.stdout)
        return done.stdout


def version() -> str | None:
    """podman's version, None where the guest has no podman."""
    try:
        return (FOLDER / "version").read_text().split()[-1]
    except FileNotFoundError:
        return None
