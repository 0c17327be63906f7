"""The command line of `scripts/vm`, and what becomes of it."""

import argparse
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vmlib import native, qemu, uml
from vmlib.host import Interrupted, TimeLimit, ending_signals, warn
from vmlib.request import CHECKOUT, SYSTEM_PATH, Request, VmError, passed_environment, system_folder

EXIT_TIME_LIMIT = 124
EXIT_NO_GUEST = 125


class Engine(Protocol):
    """What a module of ours must offer to be one."""

    SETUP: tuple[str, ...]

    def run(self, request: Request) -> int:
        """Run the command; its exit status."""


SYSTEMS = ("trixie", "sid")
_ENGINES: dict[str, Engine] = {"uml": uml, "qemu": qemu, "native": native}
_ENGINE_HELP = "uml (auto): ready in 2 s, one CPU; qemu: in 6 s, two CPUs, udevd; native: this very machine"
_DESCRIPTION = """\
Run COMMAND as root on a kernel that has dm-thin, and end with its exit status.

The command sees this machine's files read-only, the checkout and the current directory at their own paths,
and `dmthin` and the virtual environment's python first on PATH. Its standard input is empty. What it writes
to /tmp, /run, /mnt, /etc, /var and to the disk at /var/lib is gone afterwards. With --system the files are
those of that release, and of this machine there are the checkout and the current directory. With --systemd
the command is a unit's; what it writes to /etc lies on the disk, and the machine shuts down in order."""
_EPILOG = """\
in the guest:
  DMTHIN_VM           the engine: uml, qemu or native
  DMTHIN_VM_SCRATCH   a folder on a real disk (direct I/O, discard), gone afterwards
  DMTHIN_VM_OUT       the folder given as --out

exit status: the command's own, 128+n if signal n ended it; 124 past the time limit, 125 if there was no
guest to run it (or it died), 2 for a usage error.

examples:
  scripts/vm -- pytest tests/kernel
  scripts/vm --engine qemu --out results -- sh -c 'dmsetup targets > $DMTHIN_VM_OUT/targets'
  scripts/vm --system trixie -- sh -c 'uname -r; python3 --version; dmthin --version'
  scripts/vm --disk pool.img -- scripts/write-some; scripts/vm --disk pool.img -- scripts/read-back"""


def parser() -> argparse.ArgumentParser:
    """The options; kept apart for the tests."""
    options = argparse.ArgumentParser(
        prog="scripts/vm", description=_DESCRIPTION, epilog=_EPILOG,
        usage="scripts/vm [OPTION]... [--] COMMAND [ARGUMENT]...",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = options.add_argument
    add("--engine", choices=("auto", *_ENGINES), default="auto", help=_ENGINE_HELP)
    add("--system", choices=SYSTEMS, help="boot that Debian release, with its kernel, tools and Python (uml only)")
    add("--memory", type=size, default=4 << 30, metavar="SIZE", help="the guest's memory (default 4G)")
    add("--timeout", type=seconds, metavar="SECONDS", help="end the guest when the command takes longer")
    add("--env", action="append", default=[], type=variable, metavar="NAME[=VALUE]",
        help="pass a variable; DMTHIN_*, PYTEST_*, CI, TERM and the like go by themselves")  # fmt: skip
    add("--udev", action="store_true", help="start systemd-udevd (qemu always does)")
    add("--systemd", action="store_true", help="let systemd be the first process, with its udevd (uml only)")
    add("--disk", type=Path, metavar="FILE", help="keep the disk at /var/lib in FILE, made if it is missing")
    add("--out", type=Path, metavar="DIR", help="a folder for results, writable from the guest")
    add("--kernel-log", type=Path, metavar="FILE", help="keep the kernel's words in FILE")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    return options


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options and the command; ends with status 2 and a word on what is wrong."""
    options = parser()
    chosen = options.parse_args(arguments)
    if chosen.command[:1] == ["--"]:
        del chosen.command[0]
    if not chosen.command:
        options.error("there is no COMMAND to run")
    for name in ("system", "systemd"):
        if getattr(chosen, name) and chosen.engine not in ("auto", "uml"):
            options.error(f"--{name} takes user-mode-linux, not --engine {chosen.engine}")
    return chosen


def size(text: str) -> int:
    """Bytes from 512M, 4G or 2GiB; a guest does not boot with less than 64M."""
    match = re.fullmatch(r"([1-9][0-9]*)([MG])(?:iB)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it like 512M or 4G")
    amount = int(match[1]) << {"M": 20, "G": 30}[match[2]]
    if not 64 << 20 <= amount <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text} is not between 64M and 1024G")
    return amount


def seconds(text: str) -> float:
    """A time limit: more than nothing."""
    try:
        limit = float(text)
    except ValueError:
        limit = 0
    if not 0 < limit < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return limit


def variable(text: str) -> str:
    """NAME or NAME=VALUE."""
    name = text.partition("=")[0]
    if not (name.isascii() and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{name!r} is no name for a variable")
    return text


def request_from(options: argparse.Namespace) -> Request:
    """What the options ask for, in absolute paths."""
    return Request(
        command=tuple(options.command),
        environment=passed_environment(os.environ, options.env),
        cwd=Path.cwd(),
        venv=Path(os.environ.get("DMTHIN_VENV") or CHECKOUT / ".venv").absolute(),
        memory=options.memory,
        time_limit=options.timeout,
        disk=options.disk and options.disk.absolute(),
        out=options.out and options.out.absolute(),
        kernel_log=options.kernel_log and options.kernel_log.absolute(),
        udev=options.udev or options.engine == "qemu",
        systemd=options.systemd,
        system=system_folder(options.system) if options.system else None,
    )


def set_up(words: Sequence[str]) -> None:
    """Let `scripts/setup` bring what the engine lacks; it takes no time where nothing is missing."""
    if subprocess.run([CHECKOUT / "scripts" / "setup", *words], stdin=subprocess.DEVNULL).returncode != 0:
        raise VmError("scripts/setup could not bring what is missing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `scripts/vm`; the exit status."""
    options = parse(arguments)
    request = request_from(options)
    engine = _ENGINES["uml" if options.engine == "auto" else options.engine]
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"  # another user's PATH lacks sbin
    ending_signals.obey()
    try:
        set_up([*engine.SETUP, *(["--system", options.system] if options.system else [])])
        if request.out is not None:
            request.out.mkdir(parents=True, exist_ok=True)
        return engine.run(request)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except TimeLimit as late:
        warn(str(late))
        return EXIT_TIME_LIMIT
    except (VmError, OSError) as failure:
        warn(str(failure))
        return EXIT_NO_GUEST
