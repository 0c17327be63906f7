"""What is done and asserted while a machine with systemd is up, in each of two boots; `main` runs in the guest.

The first line of a step's docstring heads its row in docs/engines.md.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from enginelib.daemons import Failed, mini_rootfs, tar_of
from enginelib.waiting import until
from tests.engine.systemd.clients import Client, Ctr, Docker
from tests.engine.systemd.host import Unit, install, install_engines, installed, run

_CRASHES = 7
"""More than systemd allows a unit within ten seconds, unless the unit says otherwise."""


def first_call(client: Client) -> None:
    """under systemd: the first call starts dmthin, a container runs."""
    client.load([mini_rootfs(Path("/run")), tar_of({"srv/new": b"of the second\n"})])
    client.begin("web")
    assert client.execute("web", "echo kept > /srv/kept; cat /srv/new") == "of the second\n"
    assert client.dmthin.state == "active"


def restart(client: Client) -> None:
    """under systemd: dmthin is restarted, exec works at once."""
    before = client.dmthin.pid
    client.dmthin.systemctl("restart")
    _check_untouched(client)
    assert client.dmthin.pid != before


def stop(client: Client) -> None:
    """under systemd: dmthin is stopped, the next call starts it."""
    before = client.dmthin.pid
    client.dmthin.systemctl("stop")
    _check_untouched(client)
    _check_new(client)
    assert client.dmthin.pid not in (0, before)


def crash(client: Client) -> None:
    """under systemd: SIGKILL of dmthin, exec works at once."""
    client.dmthin.kill()
    _check_untouched(client)
    _check_new(client)


def crashes(client: Client) -> None:
    """under systemd: dmthin is killed seven times at each start, then exec works."""
    for _ in range(_CRASHES):
        client.dmthin.kill()
    _check_untouched(client)


def upgrade(client: Client) -> None:
    """under systemd: dmthin is upgraded, exec works at once."""
    install(f"after-{client.unit.name}")
    _check_untouched(client)  # by a process whose files are gone
    client.dmthin.systemctl("restart")
    _check_untouched(client)
    assert client.dmthin.program() == installed()
    _check_new(client)


def boot(client: Client) -> None:
    """under systemd: shut down and booted again, containers have what they had."""
    client.await_boot("web")
    _check_untouched(client)
    _check_new(client)


FIRST: Sequence[Callable[[Client], None]] = (first_call, restart, stop, crash, crashes, upgrade)
SECOND: Sequence[Callable[[Client], None]] = (boot,)


def _check_untouched(client: Client) -> None:
    assert client.execute("web", "cat /srv/kept; echo more > /srv/more; cat /srv/more") == "kept\nmore\n"


def _check_new(client: Client) -> None:
    """Run a new container. ctr may lose what one prints just before it ends, so it may be asked again."""

    def ran() -> bool:
        try:
            return client.once("cat /srv/new") == "of the second\n"
        except Failed:
            if client.on_containerd:
                return False
            raise

    until(ran)


def prepare(docker: Docker) -> None:
    """Install everything, and start the sockets of dmthin and the engines."""
    install("first")
    for unit in ("dmthin-docker.socket", "dmthin-containerd.socket"):
        run("systemctl", "enable", "--now", unit)
        assert Unit(unit).state == "active"
        assert Unit(unit.replace("socket", "service")).state == "inactive"
    install_engines(in_containerd=docker.on_containerd)


def check_kept_running() -> None:
    """Wait for the units that were enabled, and no more than those; none has failed."""
    units = ("dmthin-docker.socket", "dmthin-containerd.socket", "docker.service", "containerd.service")
    until(lambda: all(Unit(unit).state == "active" for unit in units))
    assert run("systemctl", "--failed", "--plain", "--no-legend") == ""


def main() -> int:
    """Do the steps of a boot, `first` or `second`, with each engine; what came of them goes to the file named next."""
    docker = Docker()
    clients: list[Client] = [docker, Ctr()]
    if sys.argv[1] == "first":
        prepare(docker)
        steps = FIRST
    else:
        check_kept_running()
        steps = SECOND
    cells: dict[str, dict[str, str]] = {}
    for client in clients:
        for step in steps:
            row = (step.__doc__ or "").splitlines()[0].rstrip(".")
            print(f"{client.column}: {row}", flush=True)
            try:
                step(client)
            except Exception:
                traceback.print_exc()
                print(client.dmthin.journal(), client.unit.journal(), file=sys.stderr)
                cells.setdefault(row, {})[client.column] = "failed"
                break
            cells.setdefault(row, {})[client.column] = "yes"
    Path(os.environ["DMTHIN_VM_OUT"], sys.argv[2]).write_text(json.dumps(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
