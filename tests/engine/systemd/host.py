"""A machine with systemd as its first process: dmthin and engines as units, installed as docs/docker.md says.

This runs in the guest, as root.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import dmthin
from enginelib.daemons import ENGINES, PATH, SYSTEM, Failed
from enginelib.waiting import until

_PROGRAMS = Path("/var/lib/programs")
_UNITS = Path("/etc/systemd/system")
_OPTIONS = ("dm.loopdatasize=8G", "dm.loopmetadatasize=64M", "dm.basesize=512M")
_LAUNCHER = """\
#!{python}
import sys
sys.path.insert(0, "{folder}")
from dmthin.cli import main
sys.exit(main())
"""


def run(*line: str, stdin: bytes = b"") -> str:
    """The output of a command. Raises Failed."""
    done = subprocess.run(line, input=stdin, capture_output=True, env={**os.environ, "PATH": PATH})
    if done.returncode:
        raise Failed(f"{line}: {done.stderr.decode()}{done.stdout.decode()}")
    return done.stdout.decode()


def install(release: str) -> None:
    """Install dmthin in a folder of its own, and its units; what was installed before is removed."""
    program = unpack(release)
    run(str(program), "system", "install")
    for other in _PROGRAMS.iterdir():
        if other != program.parents[1]:
            shutil.rmtree(other)
    run("systemctl", "daemon-reload")
    run("udevadm", "control", "--reload")


def unpack(release: str) -> Path:
    """Put dmthin into a folder of its own; its program."""
    folder = _PROGRAMS / release
    shutil.copytree(Path(dmthin.__file__).parent, folder / "dmthin", ignore=shutil.ignore_patterns("__pycache__"))
    program = folder / "bin/dmthin"
    program.parent.mkdir()
    program.write_text(_LAUNCHER.format(python=sys.executable, folder=folder))
    program.chmod(0o755)
    return program


def installed() -> str:
    """The path of the program that is installed."""
    (program,) = _PROGRAMS.glob("*/bin/dmthin")
    return str(program)


def install_engines(*, in_containerd: bool) -> None:
    """Configure containerd and dockerd for dmthin, with the units of their packages, enabled.

    `in_containerd` is for a dockerd whose images lie in containerd's store.
    """
    have_engines()
    Path("/etc/default/dmthin-containerd").write_text(
        f"DMTHIN_OPTIONS={' '.join(f'--storage-opt {option}' for option in _OPTIONS)}\n"
    )
    run(installed(), "system", "containerd-config", "--write", "--containerd", str(ENGINES / "usr/bin/containerd"))
    docker: dict[str, object] = {"storage-driver": "dmthin", "bridge": "none", "iptables": False, "ip6tables": False}
    if in_containerd:
        docker["features"] = {"containerd-snapshotter": True}
    else:
        docker |= {"experimental": True, "storage-opts": _OPTIONS}
    Path("/etc/docker/daemon.json").write_text(json.dumps(docker))
    run("systemctl", "enable", "--now", "containerd.service", "docker.socket", "docker.service")


def have_engines() -> None:
    """Have the units and the configuration of the engines' packages, and give dockerd what it takes for a plugin."""
    config = Path("/etc/containerd/config.toml")
    config.parent.mkdir(exist_ok=True)
    config.write_text(run("containerd", "config", "default"))
    Path("/etc/docker").mkdir(exist_ok=True)
    lines = ["[Service]", "Environment=DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1", f"Environment=PATH={PATH}"]
    if not SYSTEM:
        for unit in (ENGINES / "lib/systemd/system").iterdir():
            text = unit.read_text()
            for program in ("/usr/sbin/dockerd", "/usr/bin/containerd"):
                text = text.replace(f"={program}", f"={ENGINES}{program}")
            (_UNITS / unit.name).write_text(text)
    for name in ("docker", "containerd"):
        folder = _UNITS / f"{name}.service.d"
        folder.mkdir()
        (folder / "test.conf").write_text("\n".join(lines) + "\n")
    if not any(line.startswith("docker:") for line in Path("/etc/group").read_text().splitlines()):
        run("groupadd", "--system", "docker")  # as the package does, for docker.socket
    run("systemctl", "daemon-reload")


class Unit:
    """A unit of systemd's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def systemctl(self, verb: str) -> None:
        run("systemctl", verb, self.name)

    def shown(self, name: str) -> str:
        return run("systemctl", "show", "--value", f"--property={name}", self.name).strip()

    @property
    def state(self) -> str:
        return self.shown("ActiveState")

    @property
    def pid(self) -> int:
        """Its main process, 0 while there is none."""
        return int(self.shown("MainPID"))

    def kill(self) -> None:
        """Kill the main process, as soon as there is one, and see it end. Raises AssertionError if there is none."""
        until(lambda: self._processes() or self.state == "failed")
        assert self._processes(), f"systemd does not start {self.name} any more"
        first = self._processes()[0]
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in self._processes())

    def _processes(self) -> list[int]:
        """Its processes, the main one first: by the kernel, since systemctl takes a tenth of a second to tell."""
        try:
            return list(map(int, Path("/sys/fs/cgroup/system.slice", self.name, "cgroup.procs").read_text().split()))
        except OSError:
            return []

    def program(self) -> str:
        """The file that its main process runs, a script."""
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[1].decode()

    def journal(self) -> str:
        """Its last words."""
        return run("journalctl", "--no-pager", "--lines=60", f"--unit={self.name}")
