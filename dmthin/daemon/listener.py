"""The unix sockets of front ends: created for root alone, or passed by systemd (socket activation)."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from dmthin.errors import AlreadyExists, InvalidValue
from dmthin.os_errors import RIGHTS, os_failure

_BACKLOG = 128
_MAX_PATH = 107


class Listener:
    """A listening socket at `path`. `close` removes the path, unless the socket was `passed` by systemd."""

    def __init__(self, path: Path, passed: socket.socket | None = None) -> None:
        """Listen on the passed socket or on a new one.

        Raise AlreadyExists (another process listens there), NotPermitted, InvalidValue (the path is too long) or
        KernelError.
        """
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
    """Return a new listening socket. Raise what Listener does."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidValue(f"the socket path {path} is longer than {_MAX_PATH} bytes", hint="choose a shorter one")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # a chmod(2) afterwards would leave a moment in which others can connect
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
        raise os_failure(error, f"listen on {path}", RIGHTS) from None


def _remove_stale(path: Path) -> None:
    """Remove a socket without listener. Raise AlreadyExists for one that accepts connections, or for another file."""
    if not path.exists():
        return
    if not path.is_socket():
        raise AlreadyExists(f"{path} exists and is not a socket", hint="choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise AlreadyExists(f"another process listens on {path}", hint="stop it, or choose another path")
