"""The verb that prints what containerd's config.toml needs for dmthin, merges it into the file, or takes it out."""

import os
import re
import shlex
import stat
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dmthin.cli.call import Call
from dmthin.containerd import host_config
from dmthin.containerd.config import SnapshotterConfig, parse_snapshotters
from dmthin.containerd.host_config import Wanted
from dmthin.daemon.serve import CONTAINERD_SOCKET
from dmthin.errors import AlreadyExists, InvalidValue, NotFound, ToolFailed, Unavailable
from dmthin.kernel import block, process
from dmthin.os_errors import COMMAND, os_failure

_COPY = ".before-dmthin"
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")
"""containerd 1.7.24 of Debian, v2.2.1 of Docker's package and of upstream, after the name of the module."""

_LONGEST_FILE = 1 << 20
_MOST_WORDS = 400

Release = tuple[int, int, int]

FIRST_WITH_VERSION_3: Release = (2, 0, 0)
FIRST_WITH_DIFF: Release = (1, 7, 4)


def configure(call: Call) -> None:
    """Print the configuration, or change the file with --write or --remove.

    Raise InvalidValue (a file that cannot be changed), NotFound, Unavailable (no containerd), ToolFailed (containerd
    does not take the result).
    """
    given = call.arguments
    if given.write and given.remove:
        raise InvalidValue("--write and --remove exclude each other", hint="give one of them")
    snapshotters = parse_snapshotters(given.snapshotter, call.options.root)
    socket = Path(given.socket) if given.socket else CONTAINERD_SOCKET
    if not given.write and not given.remove:
        show(call, snapshotters, socket)
        return
    if given.config_version:
        raise InvalidValue("--config-version is for printing", hint="a file has a version of its own")
    path = Path(os.path.realpath(given.config))
    before = _read(path)
    if before is None and given.remove:
        raise NotFound(f"there is no {path}", hint="name the file with --config")
    text, release = before or "", _release(given.containerd)
    wanted = _wanted(call, snapshotters, socket, text, release)
    after = host_config.without(text, wanted) if given.remove else host_config.merged(text, wanted)
    if after == text:
        done = f"{path} has nothing of it" if given.remove else f"{path} has it already"
        call.output.changed(done, {"config": str(path), "changed": False, "copy": None})
        return
    copy = path.with_name(path.name + _COPY) if before is not None else None
    if call.options.dry_run:
        lines = [f"cp -p {shlex.quote(str(path))} {shlex.quote(str(copy))}"] if copy else []
        call.output.plan([*lines, f"cat > {shlex.quote(str(path))} <<'END'", *after.splitlines(), "END"])
        return

    def check(file: Path) -> None:
        _require_taken(given.containerd, file, path, None if given.remove else wanted)

    _replace(path, after, copy, check)
    kept = f"; the old one is {copy}" if copy else ""
    call.output.changed(
        f"changed {path}{kept}; next: systemctl restart containerd",
        {"config": str(path), "changed": True, "copy": str(copy) if copy else None},
    )


def show(call: Call, snapshotters: tuple[SnapshotterConfig, ...], socket: Path) -> None:
    """Print the configuration. Raise AlreadyExists if standard output is a configuration file that has it already."""
    given = call.arguments
    version = given.config_version or 2
    wanted = Wanted(snapshotters, socket, version=version, cri=given.cri, diff=given.diff, transfer=version == 3)
    if _is_in_output(wanted):
        raise AlreadyExists(
            "the file to which this is printed has it already", hint="see: dmthin system containerd-config"
        )
    call.output.data(host_config.printed(wanted))


def _is_in_output(wanted: Wanted) -> bool:
    """Return whether standard output is a file that has the tables: twice, they would stop containerd."""
    with suppress(OSError, ValueError, InvalidValue):
        if stat.S_ISREG(os.fstat(1).st_mode):
            return host_config.has_all(_read(Path("/proc/self/fd/1")) or "", wanted)
    return False


def _wanted(
    call: Call, snapshotters: tuple[SnapshotterConfig, ...], socket: Path, text: str, release: Release
) -> Wanted:
    """Return what to have in a file with this text.

    Raise InvalidValue for a version that the containerd cannot read, Unavailable for a diff plugin that it cannot take.
    """
    version = host_config.version_of(text) or (3 if release >= FIRST_WITH_VERSION_3 else 2)
    if version == 3 and release < FIRST_WITH_VERSION_3:
        raise InvalidValue(
            f"the file has version 3, which containerd {'.'.join(map(str, release))} does not read",
            hint="set version = 2, or name the containerd that reads it with --containerd",
        )
    if call.arguments.diff and call.arguments.write and release < FIRST_WITH_DIFF:
        raise Unavailable(
            f"containerd {'.'.join(map(str, release))} ends in a panic on a diff plugin",
            hint="upgrade it to 1.7.4 or later",
        )
    transfer = release >= FIRST_WITH_VERSION_3
    cri, diff = call.arguments.cri, call.arguments.diff
    return Wanted(snapshotters, socket, version=version, cri=cri, diff=diff, transfer=transfer)


def _release(program: str) -> Release:
    """Return the release of a containerd. Raise Unavailable if there is none, ToolFailed."""
    if process.find(program) is None:
        raise Unavailable(f"the program {program} is missing", hint="name containerd's with --containerd")
    said = process.run(program, "--version").stdout
    if (release := parse_release(said)) is None:
        raise Unavailable(f"{program} does not tell its version: {said.strip()[:_MOST_WORDS]!r}")
    return release


def parse_release(said: str) -> Release | None:
    """Return the release in what `containerd --version` says, None if there is none."""
    if (found := _VERSION.search(said.partition("containerd ")[2])) is None:
        return None
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def _require_taken(program: str, file: Path, path: Path, wanted: Wanted | None) -> None:
    """Raise ToolFailed unless containerd reads a new file, and finds there what is wanted."""
    try:
        dump = process.run(program, "--config", str(file), "config", "dump").stdout
    except ToolFailed as error:
        words = error.message[-_MOST_WORDS:]
        raise ToolFailed(f"containerd does not take the result, {path} is unchanged: {words}") from None
    with suppress(tomllib.TOMLDecodeError):
        if wanted is not None and not host_config.has_all(dump, wanted):
            raise ToolFailed(f"containerd does not see the proxy plugins in the result, {path} is unchanged")


def _read(path: Path) -> str | None:
    """Return the text of a configuration file, None if there is none. Raise InvalidValue (too long, not UTF-8)."""
    try:
        content = block.read(path, _LONGEST_FILE + 1)
    except NotFound:
        return None
    if len(content) > _LONGEST_FILE:
        raise InvalidValue(f"{path} is longer than {_LONGEST_FILE} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidValue(f"{path} is not UTF-8, as TOML is") from None


def _replace(path: Path, text: str, copy: Path | None, check: Callable[[Path], None]) -> None:
    """Replace a file atomically and durably by one that `check` accepts, with the owner and mode of the old one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(new, text.encode(), path)
            check(new)
            if copy is not None:
                old = path.with_name(f".{copy.name}.{os.getpid()}.new")
                _write(old, path.read_bytes(), path)
                old.rename(copy)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)
        block.sync_folder(path.parent)
    except OSError as error:
        raise os_failure(error, f"write {path}", COMMAND) from None


def _write(file: Path, content: bytes, like: Path) -> None:
    """Write a new file, durably, with the owner and mode of another that may be there."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        mode = 0o644
        with suppress(FileNotFoundError):
            former = like.stat()
            os.fchown(fd, former.st_uid, former.st_gid)
            mode = stat.S_IMODE(former.st_mode)
        os.fchmod(fd, mode)
        with open(fd, "wb", closefd=False) as stream:
            stream.write(content)
        os.fsync(fd)
    finally:
        os.close(fd)
