"""What a daemon needs of its surroundings: sockets for root alone, systemd's words, log lines for the journal."""

import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dmthin.daemon import systemd
from dmthin.daemon.listener import Listener
from dmthin.errors import AlreadyExists, InvalidValue, NotPermitted


def test_a_socket_is_for_its_owner_alone_and_goes_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "plugins" / "dmthin.sock"
    listener = Listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "dmthin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = Listener(path)
    with pytest.raises(AlreadyExists, match="another process listens on"):
        Listener(path)
    listener.close()
    path.write_text("mine")
    with pytest.raises(AlreadyExists, match="not a socket"):
        Listener(path)
    assert path.read_text() == "mine"


def test_what_cannot_be_listened_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="longer than"):
        Listener(tmp_path / ("x" * 120))
    if os.geteuid():
        with pytest.raises(NotPermitted):
            Listener(Path("/run/dmthin.sock"))


def test_a_passed_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "dmthin.sock"
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(str(path))
    passed.listen()
    Listener(path, passed).close()
    assert path.exists()


_TELL = "from dmthin.daemon import systemd; print(systemd.log_place())"


@pytest.mark.parametrize(
    ("groups", "unit"),
    [
        ("0::/system.slice/dmthin-docker.service\n", "dmthin-docker.service"),
        ("0::/system.slice/dmthin-docker.service/payload\n", "dmthin-docker.service"),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_service_among_a_processs_groups(groups: str, unit: str) -> None:
    assert systemd._unit(groups) == unit


def test_the_log_is_a_file_where_standard_error_is_one(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run([sys.executable, "-c", _TELL], stderr=log, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'log'}\n"


def test_the_log_of_one_whose_standard_error_is_the_journals(tmp_path: Path) -> None:
    """Only if it still is: a shell may have redirected it."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    line = [sys.executable, "-c", _TELL]
    for inode, started in ((status.st_ino, "journalctl"), (status.st_ino + 1, "")):
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        said = subprocess.run(line, stderr=writing, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        assert said.stdout.split()[:1] == ([started] if started else [])
    os.close(reading)
    os.close(writing)


def test_systemd_hears_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1", "STATUS=up")
        assert manager.recv(100) == b"READY=1\nSTATUS=up"
    systemd.notify("nobody listens any more")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("nobody ever did")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("60000000", "", 30.0), ("60000000", "mine", 30.0), ("60000000", "1", None), ("", "", None), ("0", "", None)],
)
def test_the_watchdog(usec: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert systemd.watchdog_seconds() == seconds


def test_sockets_are_taken_over_by_name(tmp_path: Path) -> None:
    program = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
from dmthin.daemon import systemd
for name, passed in systemd.passed_sockets():
    print(name, passed.getsockname(), os.get_inheritable(passed.fileno()))
"""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "docker"}
    line = [sys.executable, "-c", program, str(listening.fileno())]
    done = subprocess.run(line, env=environment, pass_fds=[listening.fileno()], capture_output=True, text=True)
    assert done.stdout == f"docker {tmp_path / 's'} False\n", done.stderr
    assert list(systemd.passed_sockets()) == []


def test_the_journal_gets_the_level_of_each_line() -> None:
    formatter = systemd.JournalFormatter("%(message)s")
    for level, number in ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)):
        record = logging.LogRecord("x", level, "", 0, "one\ntwo", None, None)
        assert formatter.format(record) == f"<{number}>one\n<{number}>two"


def test_many_threads_may_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        threads = [threading.Thread(target=systemd.notify, args=("WATCHDOG=1",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert [manager.recv(100) for _ in threads] == [b"WATCHDOG=1"] * 8
        for thread in threads:
            thread.join()
