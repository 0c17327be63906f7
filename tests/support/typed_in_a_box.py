"""Each main verb, and a snapshotter's calls, where nobody makes device nodes; `main` runs in the container.

The words are the folder of the store, and `bare` to remove the nodes of loops and device-mapper first: then the
container has what a runtime gives to one that is not privileged.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

from dmthin.kernel import mount
from enginelib.snapshots import Snapshots
from enginelib.waiting import listens, until
from tests.support.command import COMMAND, SMALL_OPTIONS


def nodes() -> dict[str, tuple[str, int]]:
    """Every device node below /dev: its type and mode, and its number."""
    found = {}
    for folder, _, names in os.walk("/dev"):
        for name in names:
            status = Path(folder, name).lstat()
            if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
                found[f"{folder}/{name}"] = (stat.filemode(status.st_mode), status.st_rdev)
    return found


def block_device(line: str) -> Path:
    """The block device that a command has printed."""
    path = Path(line.strip())
    assert stat.S_ISBLK(path.stat().st_mode), path
    return path


class Typed:
    """dmthin as a person types it, on one store."""

    def __init__(self, root: Path) -> None:
        self.line = [*COMMAND, "--root", str(root), "--yes"]

    def __call__(self, *words: str) -> str:
        """The output of a verb, which succeeds."""
        print("dmthin", *words, flush=True)
        done = subprocess.run([*self.line, *words], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout


def containers(dmthin: Typed, work: Path) -> None:
    """The verbs of images and containers."""
    (work / "tree/srv").mkdir(parents=True)
    (work / "tree/srv/file").write_text("of the image\n")
    with tarfile.open(work / "first.tar", "w") as tar:
        tar.add(work / "tree", arcname=".")
    dmthin("image", "import", "first", str(work / "first.tar"))
    dmthin("image", "import", "tree", str(work / "tree"))
    block_device(dmthin("container", "create", "first", "web"))
    place = Path(dmthin("container", "mount", "web").strip())
    assert (place / "srv/file").read_text() == "of the image\n"
    (place / "srv/more").write_text("of the container\n")
    dmthin("container", "resize", "web", "384M")
    dmthin("container", "commit", "web", "second")
    dmthin("container", "unmount", "web")
    dmthin("container", "resize", "web", "512M")
    dmthin("container", "create", "second", "other")
    assert (Path(dmthin("container", "mount", "other").strip()) / "srv/more").read_text() == "of the container\n"
    for view in ("list", "tree", "du"):
        assert "web" in dmthin(view)
    dmthin("container", "unmount", "other")
    dmthin("container", "remove", "web")
    dmthin("container", "remove", "other")
    dmthin("image", "remove", "second")
    dmthin("image", "remove", "tree")


def pool(dmthin: Typed) -> None:
    """The verbs of the pool, taken down and up again."""
    assert "rw" in dmthin("pool", "status")
    dmthin("pool", "extend", "--data-size", "5G", "--metadata-size", "80M")
    dmthin("pool", "trim")
    dmthin("pool", "deactivate")
    dmthin("pool", "activate")
    dmthin("container", "create", "first", "third")
    dmthin("container", "remove", "third")


def snapshots(dmthin: Typed, work: Path) -> None:
    """What containerd asks for, of a daemon that is killed once."""
    socket, place = work / "dmthin.sock", work / "place"
    place.mkdir()
    words = [*dmthin.line, "serve", "--containerd", str(socket)]
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(words) as daemon:
            try:
                until(lambda: listens(socket))
                with Snapshots(socket) as client:
                    if end is signal.SIGKILL:
                        client.prepare("key")
                    (asked,) = client.mounts("key")
                    block_device(asked.source)
                    mount.mount(asked.source, place, asked.type, ",".join(asked.options))
                    (place / end.name).touch()
                    assert (place / signal.SIGKILL.name).exists()
                    mount.unmount(place)
                    if end is signal.SIGTERM:
                        client.commit("layer", "key")
                        client.prepare("upper", "layer")
                        client.remove("upper")
                        client.remove("layer")
            finally:
                daemon.send_signal(end)
        if end is signal.SIGKILL:
            socket.unlink()


def main() -> int:
    """Type everything; whatever fails ends it with a traceback."""
    work = Path(sys.argv[1])
    if "bare" in sys.argv[2:]:
        for path in [*Path("/dev").glob("loop*"), *Path("/dev").glob("dm-*")]:
            path.unlink()
        shutil.rmtree("/dev/mapper", ignore_errors=True)
    before = nodes()
    dmthin = Typed(work / "store")
    dmthin(*SMALL_OPTIONS, "pool", "create")
    containers(dmthin, work)
    pool(dmthin)
    snapshots(dmthin, work)
    dmthin("pool", "destroy")
    assert nodes() == before, (nodes(), before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
