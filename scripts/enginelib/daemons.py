"""What the tests of both engines stand on: daemons as processes of the test run, small root file systems, traces."""

import os
import shutil
import signal
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from dmthin.kernel import loop, mount
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.store.store import Store
from enginelib.waiting import PATIENCE

CACHE = Path(os.environ["DMTHIN_VM_CACHE"])
SYSTEM = os.environ.get("DMTHIN_VM_SYSTEM", "")
"""The Debian release that the guest boots; empty for this machine's own."""

ENGINES = Path("/") if SYSTEM else CACHE / "engines"
ROOTFS = CACHE / "rootfs.tar"
SCRATCH = Path(os.environ["DMTHIN_VM_SCRATCH"])
PATH = f"{ENGINES}/usr/bin:{ENGINES}/usr/sbin:{os.environ['PATH']}"


class Failed(Exception):
    """A command of an engine failed; the text is what it said."""


class Daemon:
    """A process that serves, its words in a log."""

    def __init__(self, log: Path, *line: str) -> None:
        self.log = log
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            environment = {**os.environ, "PATH": PATH}
            environment.pop("DM_DISABLE_UDEV", None)
            self._process = subprocess.Popen(self._line, stdout=output, stderr=output, env=environment)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and wait for its end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(PATIENCE)
        self._process = None
        return status

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None


def last_words(*daemons: Daemon) -> str:
    """The ends of their logs."""
    logs = [daemon.log for daemon in daemons if daemon.log.exists()]
    return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-6000:]}" for log in logs)


def traces(root: Path) -> list[str]:
    """Every device, loop and mount that there is of the store in a folder."""
    with Store(root) as store, IoctlDeviceMapper() as dm:
        prefix = store.ledger.store().prefix
        devices = [device.name for device in dm.devices() if device.name.startswith(prefix)]
    backing = (Path(f"/sys/block/loop{index}/loop/backing_file") for index in loop.bound())
    loops = [text for text in (file.read_text().strip() for file in backing) if text.startswith(f"{root}/")]
    return [*devices, *loops, *(entry.target for entry in mount.under(root))]


def tar_of(files: dict[str, bytes | None]) -> bytes:
    """A tar of files, of folders where the content is None."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(content)
            tar.addfile(info, BytesIO(content or b""))
    return buffer.getvalue()


def mini_rootfs(folder: Path) -> bytes:
    """A tar of a root file system that holds busybox and nothing else worth the time."""
    root = folder / "mini"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "etc", "tmp", "srv/old", "lib"):
        (root / name).mkdir(parents=True)
    shutil.copy(ENGINES / "bin/busybox", root / "bin/busybox")
    for name in ("sh", "cat", "ls", "rm", "ln", "sleep", "df", "dd", "mkdir", "stat", "touch", "chmod", "find", "true"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/motd").write_text("hello\n")
    (root / "srv/old/file").write_text("old\n")
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    return buffer.getvalue()
