"""dmthin as containerd meets it: a daemon that is started and killed, mounts as it tells them, garbage collected.

Nothing here is the server's: the client is `enginelib.snapshots`.
"""

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from dmthin.kernel import mount
from dmthin.store.store import Store
from enginelib.snapshots import Info, Mount, Snapshots
from enginelib.waiting import PATIENCE, until
from tests.support.stores import take_down

OPTIONS = ("dm.loopdatasize=4G", "dm.loopmetadatasize=64M", "dm.basesize=320M")
"""Storage options that any of the file systems can do with."""


class Daemon:
    """`dmthin serve --containerd` with its stores in one folder, started and killed as often as a test likes.

    `snapshotters` are values of --snapshotter, `words` more options of `serve`.
    """

    def __init__(
        self, folder: Path, *snapshotters: str, options: Collection[str] = OPTIONS, words: Collection[str] = ()
    ) -> None:
        self.root = folder / "store"
        self.socket = folder / "socket"
        self.log = folder / "log"
        self._line = [sys.executable, "-m", "dmthin", "--root", str(self.root)]
        self._line += [word for option in options for word in ("--storage-opt", option)]
        self._line += ["serve", "--containerd", str(self.socket)]
        self._line += [*(word for text in snapshotters for word in ("--snapshotter", text)), *words]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        """Start it; returns once it answers, or is dead already where a failpoint is set."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._line, stderr=log, env={**os.environ, **environment})
        until(lambda: self._listens() or (self._process and self._process.poll() is not None))
        assert environment or self._process.poll() is None, self.log.read_text()
        with self.client("nobody") as client, suppress(grpc.RpcError):
            client.cleanup()

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM; it ends what is under way. Fine if it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            assert self._process.wait(PATIENCE) == 0, self.log.read_text()

    def client(self, snapshotter: str = "dmthin") -> Snapshots:
        """A client of one of its snapshotters."""
        return Snapshots(self.socket, snapshotter)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return not connection.connect_ex(str(self.socket))


@contextmanager
def serving(
    folder: Path,
    *snapshotters: str,
    options: Collection[str] = OPTIONS,
    words: Collection[str] = (),
    stores: Collection[Path] = (),
) -> Iterator[Daemon]:
    """A daemon that serves; its store and the `stores` are checked and destroyed in the end."""
    daemon = Daemon(folder, *snapshotters, options=options, words=words)
    with ExitStack() as stack:
        for root in (daemon.root, *stores):
            stack.callback(_take_down, root)
        stack.callback(daemon.stop)
        daemon.start()
        yield daemon
        daemon.stop()
        assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


def collect_garbage(snapshots: Snapshots, known: Collection[str] = ()) -> None:
    """What containerd's garbage collector does: List, Remove of whatever it does not know, children first, Cleanup."""
    left = {info.name: info for info in snapshots.list() if info.name not in known}
    while left:
        parents = {info.parent for info in left.values()}
        leaves = [name for name in left if name not in parents]
        assert leaves
        for name in leaves:
            snapshots.remove(name)
            del left[name]
    snapshots.cleanup()


@contextmanager
def mounted(mounts: tuple[Mount, ...], place: Path) -> Iterator[Path]:
    """Snapshots are mounted where containerd mounts them: by mount(2), exactly as the answer says."""
    (one,) = mounts
    place.mkdir(exist_ok=True)
    mount.mount(one.source, place, one.type, ",".join(one.options))
    try:
        yield place
    finally:
        mount.unmount(place)
        place.rmdir()


def layer(snapshots: Snapshots, name: str, parent: str, place: Path, **files: str) -> Info:
    """Unpack a layer as containerd does: prepared, written, committed."""
    key = f"extract-{name}"
    with mounted(snapshots.prepare(key, parent), place) as root:
        for path, text in files.items():
            (root / path).write_text(text)
    snapshots.commit(name, key)
    return snapshots.stat(name)


def device_of(mounts: tuple[Mount, ...]) -> Path:
    """The block device of a snapshot."""
    (one,) = mounts
    return Path(one.source)


def _take_down(root: Path) -> None:
    if (root / "ledger.db").exists():
        take_down(Store(root))


@contextmanager
def refused(code: Any, match: str = "") -> Iterator[None]:
    """The block ends with this status code, and with a text in which the pattern is found; there is always a text."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    found, text = caught.value.code(), caught.value.details()
    assert found is code, f"{found.name}: {text}"
    assert text
    assert re.search(match, text), f"{match!r} is not in: {text}"


_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32) of ext4 and XFS: end as a crash would, the log written first."""


def crash(root: Path) -> None:
    """End a mounted file system as a crash would: its journal holds the last changes."""
    fd = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", 1))
    finally:
        os.close(fd)
