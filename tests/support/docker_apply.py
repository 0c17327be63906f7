"""dockerd's own unpacker of layers, that of its drivers vfs and devicemapper, without a dockerd that runs."""

import subprocess
from pathlib import Path

from enginelib.daemons import ENGINES, PATH


def docker_applies(root: Path, layer: bytes) -> str:
    """Let it apply a layer to a tree; return what it said if it refused."""
    line = ["docker-applyLayer", str(root)]
    done = subprocess.run(
        line,
        executable=f"{ENGINES}/usr/sbin/dockerd",
        env={"OPT": "{}", "PATH": PATH},
        input=layer,
        capture_output=True,
    )
    return "" if done.returncode == 0 else (done.stderr or done.stdout).decode()
