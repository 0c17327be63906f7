"""What is to be run in a guest, and what every engine promises it: environment, working directory, PATH."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUT_IN_GUEST = Path("/run/vm-out")

_PASSED_PREFIXES = ("DMTHIN_", "PYTEST_")
_PASSED_NAMES = ("CI", "TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TZ")


def cache_folder() -> Path:
    """Where `scripts/setup` keeps what it does not install."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmthin"


def system_folder(name: str) -> Path:
    """The root file system of a Debian release, as `scripts/setup --system` makes it."""
    return cache_folder() / "systems" / name


class VmError(Exception):
    """The guest could not be started, or died: never the command's own failure."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command and the guest it wants. Paths are absolute; `memory` is in bytes, `time_limit` in seconds.

    `system` is the guest's root file system, if that is not this machine's own.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    venv: Path
    memory: int
    time_limit: float | None = None
    disk: Path | None = None
    out: Path | None = None
    kernel_log: Path | None = None
    udev: bool = False
    systemd: bool = False
    system: Path | None = None

    def needed_paths(self) -> tuple[Path, ...]:
        """Where the command finds its code: checkout, virtual environment, interpreter, what `setup` has unpacked.

        Another system has Python and its libraries itself, and perhaps a folder of the current one's name.
        """
        if self.system is not None:
            own_folder = (self.system / self.cwd.relative_to("/")).exists()
            return (CHECKOUT, cache_folder(), *(() if own_folder else (self.cwd,)))
        interpreter = (self.venv / "bin" / "python").resolve()
        paths = (CHECKOUT, self.venv, self.venv.resolve(), interpreter.parent.parent, self.cwd, cache_folder())
        return tuple(path for path in paths if path.exists())


def passed_environment(environment: Mapping[str, str], chosen: Sequence[str] = ()) -> dict[str, str]:
    """The variables that follow a command into the guest; `chosen` holds NAME (as it is here), NAME=VALUE."""
    passed = {
        name: value
        for name, value in environment.items()
        if name.isidentifier() and (name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES))
    }
    for word in chosen:
        name, equals, value = word.partition("=")
        if equals:
            passed[name] = value
        elif name in environment:
            passed[name] = environment[name]
    return passed


def guest_environment(request: Request, engine: str) -> dict[str, str]:
    """The whole environment of the command: what every engine sets, then what the caller passes."""
    environment = {"PATH": SYSTEM_PATH, "HOME": "/run/home", "LANG": "C.UTF-8"}
    if request.system is None:
        environment["PATH"] = f"{request.venv}/bin:{SYSTEM_PATH}"
        environment["VIRTUAL_ENV"] = str(request.venv)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the checkout is read-only
    else:
        environment["DMTHIN_VM_SYSTEM"] = request.system.name
    if not (request.udev or request.systemd):
        environment["DM_DISABLE_UDEV"] = "1"  # else dmsetup waits for a udevd, or leaves the node to it
    environment.update(request.environment)
    environment["DMTHIN_VM"] = engine
    environment["DMTHIN_VM_SCRATCH"] = "/var/lib/scratch"
    environment["DMTHIN_VM_CACHE"] = str(cache_folder())
    if request.out is not None:
        environment["DMTHIN_VM_OUT"] = str(OUT_IN_GUEST)
    return environment


def job_script(request: Request, engine: str) -> str:
    """Shell text for the guest's first process: become the command, in a session of its own."""
    environment = guest_environment(request, engine)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"cd {shlex.quote(str(request.cwd))} || exit 125")
    lines.append(f"exec setsid -- {shlex.join(request.command)}")
    return "\n".join(lines) + "\n"
