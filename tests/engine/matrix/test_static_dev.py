"""dmthin in a container that has rights but no udev: its /dev is a tmpfs, in which nobody makes a node later.

The first line of a test's docstring heads its row in docs/engines.md.
"""

import shutil
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from enginelib.daemons import SCRATCH
from tests.engine.matrix.engines import DockerPlugin

CHECKOUT = Path(__file__).resolve().parents[3]
FROM_HOST = ("/usr", "/etc/ld.so.cache", "/etc/mke2fs.conf")
IMAGE = "box"


def links() -> bytes:
    """A tar of nothing but the links of a root file system to /usr."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("nodes", ["privileged", "bare"])
def test_every_verb_in_a_container(engine: DockerPlugin, nodes: str) -> None:
    """each verb of dmthin in a container without udev, its /dev"""
    engine.docker("import", "-", IMAGE, stdin=links())
    work = SCRATCH / f"box-{nodes}"
    work.mkdir()
    places = {*FROM_HOST, sys.prefix, sys.base_prefix, str(CHECKOUT)}
    shown = [word for place in sorted(places) for word in ("--volume", f"{place}:{place}:ro")]
    variables = {
        "PATH": "/usr/sbin:/usr/bin",
        "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'scripts'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    options = ["--rm", "--privileged", "--net=none", *shown, "--volume", f"{work}:/work", *environment]
    program = [sys.executable, "-m", "tests.support.typed_in_a_box", "/work", nodes]
    done = engine.docker.run("run", *options, IMAGE, *program)
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
    engine.forget(IMAGE)
    shutil.rmtree(work)
