"""The interface between systemd and a service: sd_notify(3), sd_listen_fds(3), sd-daemon(3) log levels."""

import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dmthin import steps

_LISTEN_FDS_START = 3
_LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels of the logging module, and those of syslog(3), which the journal reads from a prefix `<N>` of a line."""


def notify(*assignments: str) -> None:
    """Send `READY=1`, `STATUS=...` and the like to systemd. Do nothing without a service manager."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(assignments).encode(), address)


def watchdog_seconds() -> float | None:
    """Return half of the watchdog timeout, the interval for `WATCHDOG=1`; None if the watchdog is off."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isdecimal() and int(text) else None


def passed_sockets() -> Iterator[tuple[str, socket.socket]]:
    """Yield the listening sockets that systemd passed, each with its FileDescriptorName."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(count):
        passed = socket.socket(fileno=_LISTEN_FDS_START + number)
        passed.set_inheritable(False)
        yield (names[number] if number < len(names) else ""), passed


def log_place() -> str:
    """Return where the log is, for a person to read: a command, or the file that is standard error; else empty."""
    try:
        status = os.fstat(2)
        if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":  # systemd.exec(5)
            unit = _unit(Path("/proc/self/cgroup").read_text())
            return f"journalctl -u {unit}" if unit else "journalctl"
        return str(Path("/proc/self/fd/2").readlink()) if stat.S_ISREG(status.st_mode) else ""
    except OSError:
        return ""


def _unit(cgroups: str) -> str:
    """Return the service in cgroups(7)' list of a process's groups, empty if there is none."""
    units = (part for line in cgroups.splitlines() for part in reversed(line.split("/")) if part.endswith(".service"))
    return next(units, "")


class JournalFormatter(logging.Formatter):
    """Formats records with the level prefix that the journal parses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several with a traceback, each with its level."""
        level = next((number for floor, number in _LEVELS if record.levelno >= floor), 7)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def set_up_logging(*, verbose: int, quiet: bool) -> None:
    """Log to standard error: for the journal where that is what reads it, else with the time.

    `verbose` is the verbosity of the trace, see `steps.trace`.
    """
    steps.trace(verbose)
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    ours = logging.getLogger("dmthin")
    ours.handlers.clear()  # a command's words to its user are not what a daemon says
    ours.setLevel(logging.NOTSET)
    for chatty in ("asyncio", "sh", "h2", "hpack"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
