"""`dmthin serve` as a process: readiness, watchdog, passed sockets, signals. No store is needed for that."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from enginelib.waiting import PATIENCE, listens, until

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start daemons; none outlives the test."""
    with ExitStack() as stack:

        def run(*words: str, program: Sequence[str] = ("-m", "dmthin"), **environment: str) -> "subprocess.Popen[str]":
            line = [sys.executable, *program, "serve", *words]
            process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield run


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE)
        yield listening


def activate(path: Path) -> int:
    """The status of the first call of dockerd."""
    connection = http.client.HTTPConnection("plugin", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.putrequest("POST", "/Plugin.Activate", skip_host=True)
    connection.putheader("Host", "")
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    answer = connection.getresponse()
    assert json.loads(answer.read()) == {"Implements": ["GraphDriver"]}
    connection.close()
    return answer.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_until_a_signal(start: Start, tmp_path: Path, number: int) -> None:
    path = tmp_path / "plugins" / "dmthin.sock"
    process = start("--docker", str(path))
    until(lambda: listens(path))
    assert activate(path) == 200
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert not path.exists()
    assert process.stderr is not None
    words = process.stderr.read()
    assert f"serving dockerd on {path}" in words
    assert "Traceback" not in words


def test_systemd_hears_that_it_is_ready_alive_and_ending(start: Start, tmp_path: Path, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
    process = start("--docker", str(tmp_path / "s"), **environment)
    said = [manager.recv(200).decode() for _ in range(4)]
    assert said[0] == f"READY=1\nSTATUS=serving dockerd on {tmp_path / 's'}"
    assert said[1:] == ["WATCHDOG=1"] * 3
    process.terminate()
    while "STOPPING=1" not in (last := manager.recv(200).decode()):
        assert last == "WATCHDOG=1"
    assert process.wait(PATIENCE) == 0


def test_a_passed_socket_is_served_and_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "passed"))
        listening.listen()
        starter = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.executable, [sys.executable, '-m', 'dmthin', 'serve', '--docker', '/nowhere/at/all'])"
        )
        environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "docker"}
        line = [sys.executable, "-c", starter, str(listening.fileno())]
        with subprocess.Popen(line, env=environment, pass_fds=[listening.fileno()], stderr=subprocess.PIPE) as process:
            assert activate(tmp_path / "passed") == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert (tmp_path / "passed").exists()


def test_a_second_one_on_the_same_socket_is_refused(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    start("--docker", str(path))
    until(lambda: listens(path))
    assert activate(path) == 200
    second = start("--docker", str(path))
    assert second.wait(PATIENCE) == 4
    assert second.stderr is not None
    assert second.stderr.read() == f"dmthin: another process listens on {path}: stop it, or choose another path\n"
    assert activate(path) == 200


def test_one_that_was_killed_is_followed_by_another(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = start("--docker", str(path))
    until(lambda: listens(path))
    first.kill()
    first.wait()
    assert path.exists()
    start("--docker", str(path))

    def answers() -> bool:
        with suppress(ConnectionRefusedError, FileNotFoundError):  # the old socket goes before the new one comes
            return activate(path) == 200
        return False

    until(answers)


def test_an_idle_connection_does_not_hold_up_the_end(start: Start, tmp_path: Path) -> None:
    """Requests may go on for a while after the signal: for ever, here."""
    code = (
        "import sys; from dmthin.daemon import serve; from dmthin.cli import main;"
        "assert serve._SHUTDOWN_SECONDS; serve._SHUTDOWN_SECONDS = 1e6; sys.exit(main())"
    )
    path = tmp_path / "s"
    process = start("--docker", str(path), program=("-c", code))
    until(lambda: listens(path))
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(path))
        idle.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_call_before_init_says_what_to_do(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    start("--docker", str(path))
    until(lambda: listens(path))
    results: list[bytes] = []

    def call() -> None:
        connection = http.client.HTTPConnection("plugin", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("POST", "/GraphDriver.Status", body=b"{}")
        results.append(connection.getresponse().read())

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all("restart dockerd" in json.loads(result)["Err"] for result in results)
