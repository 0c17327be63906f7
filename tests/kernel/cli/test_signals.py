"""The `dmthin` command interrupted, and on a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import tarfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dmthin.kernel import mount
from dmthin.store.store import Store
from dmthin.units import KIB, MIB
from enginelib.waiting import PATIENCE, until
from tests.support.command import COMMAND, SMALL_OPTIONS, Command, picture


def importing(root: Path, *words: str, given: int = 4 * MIB, **options: Any) -> "subprocess.Popen[bytes]":
    """An import from standard input that is given the first bytes of a tar, and then waits for more."""
    line = [*COMMAND, "--root", str(root), "image", "import", "big", "-", *words]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=options.pop("stderr", subprocess.PIPE), **options)
    head = tarfile.TarInfo("content")
    head.size = 100 * MIB
    assert process.stdin is not None
    process.stdin.write(head.tobuf() + bytes(given))
    process.stdin.flush()
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_an_import_leaves_nothing(
    dmthin: Command, store: Store, image: str, number: signal.Signals, status: int
) -> None:
    before = picture(store)
    process = importing(store.layout.root)
    until(lambda: any(entry.target.startswith(f"{store.layout.work}/") for entry in mount.table()))
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status
    assert re.fullmatch(rb"dmthin: \w+( up)?: the change was rolled back, .*\n", err)
    assert picture(store) == before
    assert dmthin.ok("image", "ls", "-H", "-o", "name").out == "image\n"


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has not taken a signal yet that was sent to it (proc(5), ShdPnd)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        words = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return bool(int(words["ShdPnd"], 16) >> (number - 1) & 1)
    return False


def test_impatience_leaves_no_traceback(store: Store, image: str) -> None:
    process = importing(store.layout.root)
    until(lambda: any(entry.target.startswith(f"{store.layout.work}/") for entry in mount.table()))
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        until(lambda: process.poll() is not None or not is_pending(process.pid, signal.SIGINT))
    _, err = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)  # the latter when all was done already
    assert b"Traceback" not in err
    assert all(line.startswith(b"dmthin: ") for line in err.splitlines())
    store.pool.activate()
    assert [volume.name for volume in store.ledger.volumes()] == ["@base/ext4/256M", "image"]


def test_a_signal_while_a_program_runs(store: Store, dmthin: Command) -> None:
    """mkfs works on the base when the signal comes."""
    before = picture(store)
    process = importing(store.layout.root, "--storage-opt", "size=100G", given=0)
    until(lambda: any(running.info["name"] == "mkfs.ext4" for running in psutil.process_iter(["name"])))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    dmthin.ok("pool", "activate")
    assert picture(store) == before


def test_a_signal_in_this_very_process(dmthin: Command, store: Store, image: str, scratch: Path) -> None:
    before = picture(store)
    pipe = scratch / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        head = tarfile.TarInfo("content")
        head.size = 100 * MIB
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            stream.write(head.tobuf() + bytes(4 * MIB))
            os.kill(os.getpid(), signal.SIGINT)
            stream.write(bytes(1 * MIB))

    thread = threading.Thread(target=feed)
    thread.start()
    ran = dmthin("image", "import", "new", str(pipe))
    thread.join()
    assert ran.status == 130
    assert ran.err.startswith("dmthin: interrupted: ")
    assert picture(store) == before


def on_terminal(line: list[str], answer: str = "") -> tuple[int, str]:
    """Run a command on a terminal of its own, answer its question; its status and all that the terminal showed."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(line[0], line)
    if answer:
        os.write(terminal, f"{answer}\n".encode())
    shown = b""
    with suppress(OSError):  # EIO once the other side has closed
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_destroying_asks_on_a_terminal(fresh: Command) -> None:
    fresh.ok("pool", "create", *SMALL_OPTIONS)
    line = [*COMMAND, "--root", str(fresh.root), "pool", "destroy"]
    status, shown = on_terminal(line, "no")
    assert status == 1
    assert f"To destroy this, type {fresh.root} or yes:" in shown
    assert "its volumes: none" in shown
    assert "dmthin: not confirmed, nothing was changed" in shown
    assert fresh.ok("--json", "pool", "status").json["pool"]["mode"] == "rw"
    status, shown = on_terminal(line, str(fresh.root))
    assert status == 0
    assert f"destroyed store {fresh.root}" in shown
    assert not fresh.root.exists()


def test_progress_on_a_terminal_comes_late_and_goes(store: Store, image: str) -> None:
    terminal, behind = pty.openpty()
    process = importing(store.layout.root, stderr=behind)
    os.close(behind)
    assert process.stdin is not None
    shown = b""
    left = 96 * MIB
    while left:  # little by little, until progress is shown, which it is after a while only
        piece = min(left, 64 * KIB) if b"/s" not in shown else left
        process.stdin.write(bytes(piece))
        process.stdin.flush()
        left -= piece
        if select.select([terminal], [], [], 0 if b"/s" in shown else 0.05)[0]:
            shown += os.read(terminal, 4096)
    process.stdin.write(bytes(10240))
    process.stdin.close()
    with suppress(OSError):
        while select.select([terminal], [], [], PATIENCE)[0] and (piece_shown := os.read(terminal, 4096)):
            shown += piece_shown
    os.close(terminal)
    assert process.wait() == 0
    lines = shown.decode().split("\r")
    assert any(re.fullmatch(r"1 entries, [\d.]+M, [\d.]+M/s *", line) for line in lines), lines
    assert re.search(r"\r +\rimported big: 256M, 1 entries, 100M in files\s*$", shown.decode())
