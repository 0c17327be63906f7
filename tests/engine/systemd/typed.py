"""The commands of a page of the documents, typed on a machine with systemd; `main` runs in the guest."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from enginelib.daemons import SYSTEM, mini_rootfs
from tests.engine.systemd.host import have_engines, unpack
from tests.support.archives import docker_archive, oci_archive
from tests.support.pages import Typed, commands

_IMAGE = "docker.io/library/debian:12"
_DOCKER, _OCI = Path("/run/docker.tar"), Path("/run/oci.tar")
INSTEAD: Mapping[str, str] = {
    "docker pull debian:12": f"docker load --input {_DOCKER}",
    f"ctr images pull --snapshotter dmthin {_IMAGE}": f"ctr images import --snapshotter dmthin {_OCI}",
}
"""What is typed instead of the commands that take a registry."""


def prepare() -> None:
    """Have what a page begins with: dmthin on the search path, and the engines as their packages leave them."""
    Path("/usr/local/sbin/dmthin").symlink_to(unpack("typed"))
    have_engines()
    # The guest has neither bridges nor a packet filter; dockerd warns of a host that forwards nothing.
    Path("/etc/default/docker").write_text("DOCKER_OPTS=--bridge=none --iptables=false --ip6tables=false\n")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    layer = mini_rootfs(Path("/run"))
    _DOCKER.write_bytes(docker_archive(_IMAGE, [layer]))
    _OCI.write_bytes(oci_archive(_IMAGE, [layer]))
    subprocess.run(["systemctl", "enable", "--now", "containerd", "docker.socket", "docker"], check=True)


def fault(typed: Typed) -> str:
    """Type a command; what is wrong with it. It must fail where the page shows an error of dmthin."""
    command = typed.command
    for online, offline in INSTEAD.items():
        command = command.replace(online, offline)
    line = ["bash", "-c", command]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    refused = typed.printed.startswith("dmthin: ")
    if (done.returncode != 0) is not refused or not typed.agrees(done.stdout):
        return f"status {done.returncode}, it printed\n{done.stdout}and not\n{typed.printed}"
    return ""


def main() -> int:
    """Type what a page has for this system; 1 if something was not as the page says."""
    page = Path(sys.argv[1])
    prepare()
    faults = 0
    for typed in commands(page):
        if typed.system == SYSTEM:
            print(f"{page.name}, line {typed.line}: {typed.command}", flush=True)
            if found := fault(typed):
                print(found, flush=True)
                faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
