"""The unix sockets that a face listens on: made here for root alone, or passed by systemd."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from dmthin.errors import AlreadyExists, InvalidValue
from dmthin.os_errors import RIGHTS, os_failure

_BACKLOG = 128
_MAX_PATH = 107


class Listener:
    """A listening socket at `path`. One that we made goes with us; one of systemd's stays."""

    def __init__(self, path: Path, passed: socket.socket | None = None) -> None:
        """Listen. Raises AlreadyExists (another process does), NotPermitted, InvalidValue (a path too long)."""
        self.path = path
        self._own = passed is None
        self.socket = passed or _listen(path)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._own:
            with suppress(OSError):
                self.path.unlink()


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidValue(f"{path} is longer than the {_MAX_PATH} bytes of a socket's address", hint="choose another")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # never, not even for a moment, for others than root
        try:
            listening.bind(os.fspath(path))
        except BaseException:
            listening.close()
            raise
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
        return listening
    except OSError as error:
        raise os_failure(error, f"listen at {path}", RIGHTS) from None


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises AlreadyExists for any other file, and for one that answers."""
    if not path.exists():
        return
    if not path.is_socket():
        raise AlreadyExists(f"{path} is not a socket", hint="choose another, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise AlreadyExists(f"another process serves {path}", hint="stop that first, or choose another")
