"""Installation of systemd units and udev rules."""

import os
import sys
from importlib.resources import files
from pathlib import Path

from dmthin.cli.call import Call
from dmthin.errors import InvalidValue, NotFound

_UNITS = "etc/systemd/system"
_PLACES = {
    "systemd/dmthin-docker.socket": _UNITS,
    "systemd/dmthin-docker.service": _UNITS,
    "systemd/dmthin-containerd.socket": _UNITS,
    "systemd/dmthin-containerd.service": _UNITS,
    "udev/12-dmthin.rules": "etc/udev/rules.d",
}
_PROGRAM = "@DMTHIN@"
_NEXT = (
    "systemctl daemon-reload",
    "udevadm control --reload",
    "systemctl enable --now dmthin-containerd.socket (containerd, Docker 28 and later), "
    "or dmthin-docker.socket (Docker 1.13 to 27)",
)


def install(call: Call) -> None:
    """Copy units and rules to the directories of systemd and udev. Raise InvalidValue, NotFound, OSError."""
    target = Path(call.arguments.destdir)
    if not target.is_absolute():
        raise InvalidValue(
            f"--destdir {target} is not an absolute path", hint="pass the root directory of a system, such as /"
        )
    program = _program()
    written = {target / place / Path(name).name: _content(name, program) for name, place in _PLACES.items()}
    if call.options.dry_run:
        call.output.plan([f"install -D -m 644 {path.name} {path}" for path in written])
        return
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(content)
        new.chmod(0o644)
        new.rename(path)
        call.output.say(f"installed {path}")
    call.output.made = "installed the units and rules"
    if call.options.json:
        call.output.document({"installed": [os.fspath(path) for path in written]})
    else:
        call.output.say(f"next: {'; '.join(_NEXT)}")


def _program() -> str:
    """Return the absolute path of the dmthin command that is running. Raise NotFound."""
    beside = Path(sys.executable).parent / "dmthin"
    for found in (Path(sys.argv[0]), beside):
        if found.name == "dmthin" and found.is_file():
            return os.fspath(found.absolute())
    raise NotFound(f"no command {beside}", hint="install dmthin, and run the installed command")


def _content(name: str, program: str) -> str:
    return files("dmthin").joinpath("data", name).read_text().replace(_PROGRAM, program)
