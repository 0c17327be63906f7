"""A real dockerd on a dmthin of its own, both as processes of this test run."""

import http.client
import json
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmthin.store.store import Store
from enginelib.daemons import PATH, Daemon, Failed, last_words
from enginelib.waiting import PATIENCE, listens, until

PLUGINS = Path("/run/docker/plugins")
BUILT_IN = frozenset({"devicemapper", "overlay2", "vfs"})
"""Drivers of dockerd's own, which need no dmthin."""

_GRAPHDRIVER_PLUGINS = "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS"
"""The variable without which dockerd 24 to 27 take no plugin as a storage driver."""


class Docker:
    """One dockerd with its data root, its dmthin and its command line. `driver` names the plugin's socket.

    A dmthin that is `verbose` logs each call.
    """

    def __init__(self, folder: Path, driver: str = "dmthin", *options: str, verbose: bool = True) -> None:
        self.folder = folder
        self.data_root = folder / "docker"
        self.home = self.data_root / driver
        self.driver = driver
        self.plugin = PLUGINS / f"{driver}.sock"
        self.socket = Path(f"/run/{folder.name}.sock")
        folder.mkdir(parents=True, exist_ok=True)
        self.data_root.mkdir(exist_ok=True)
        words = ("serve", "--docker", str(self.plugin), *(["-v"] if verbose else []))
        self.dmthin = Daemon(folder / "dmthin.log", "dmthin", *words)
        self.options = options
        self.dockerd = Daemon(folder / "dockerd.log", *self._dockerd_line())

    def _dockerd_line(self) -> Sequence[str]:
        run = f"/run/{self.folder.name}"
        return (
            *("env", f"{_GRAPHDRIVER_PLUGINS}=1", "dockerd", "--experimental"),
            *("--storage-driver", self.driver, "--data-root", str(self.data_root)),
            *("--exec-root", run, "--pidfile", f"{run}.pid", "--host", f"unix://{self.socket}"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none", "--live-restore=false"),
            *(word for option in self.options for word in ("--storage-opt", option)),
        )

    def start(self) -> None:
        """Start what does not run, and wait until it answers."""
        if self.driver not in BUILT_IN and not self.dmthin.runs:
            self.dmthin.start()
            until(lambda: listens(self.plugin))
        if not self.dockerd.runs:
            self.dockerd.start()
        until(lambda: not self.dockerd.runs or self._answers())
        assert self.dockerd.runs, f"dockerd ended: {self.dockerd.log.read_text()[-2000:]}"

    def stop(self) -> None:
        """End both as a machine that shuts down does."""
        if self.dockerd.runs:
            self.dockerd.end()
        if self.dmthin.runs:
            assert self.dmthin.end() == 0

    def __call__(self, *words: str, stdin: bytes = b"", buildkit: bool = False) -> str:
        """The output of a docker command. Raises Failed."""
        done = self.run(*words, stdin=stdin, buildkit=buildkit)
        if done.returncode:
            raise Failed(done.stderr.decode() + done.stdout.decode())
        return done.stdout.decode()

    def run(self, *words: str, stdin: bytes = b"", buildkit: bool = False) -> "subprocess.CompletedProcess[bytes]":
        """A docker command, whatever becomes of it."""
        return subprocess.run(self._line(*words), input=stdin, capture_output=True, env=self._environment(buildkit))

    def begin(self, *words: str, stdin: int | None = None) -> "subprocess.Popen[bytes]":
        """A docker command that goes on while we do; with `subprocess.PIPE` its input comes from us."""
        out = subprocess.PIPE
        environment = self._environment(False)
        return subprocess.Popen(self._line(*words), stdin=stdin, stdout=out, stderr=out, env=environment)

    def _line(self, *words: str) -> list[str]:
        return ["docker", "--host", f"unix://{self.socket}", *words]

    def _environment(self, buildkit: bool) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/run/home", "DOCKER_BUILDKIT": str(int(buildkit))}

    def container(self, image: str, *words: str, options: Iterable[str] = ()) -> str:
        """Run a program in a new container to its end, without a network; what it printed."""
        return self("run", "--rm", "--net=none", *options, image, *words)

    def store(self) -> Store:
        """dmthin's store, opened beside its daemon."""
        return Store(self.home)

    def unknown_volumes(self) -> list[str]:
        """The volumes that no layer and no container of dockerd's names: what a failure would have left."""
        layers = self.data_root / "image" / self.driver / "layerdb"
        known = {file.read_text().strip() for file in layers.glob("sha256/*/cache-id")}
        known |= {file.read_text().strip() for file in layers.glob("mounts/*/*-id")}
        with self.store() as store:
            return [v.name for v in store.ledger.volumes() if v.name not in known and not v.name.startswith("@base/")]

    def await_only_known_volumes(self) -> None:
        """What dockerd has removed goes behind it, in a moment."""
        until(lambda: not self.unknown_volumes())

    def logs(self) -> str:
        """The last words of both daemons."""
        return last_words(self.dmthin, self.dockerd)

    def _answers(self) -> bool:
        return self.run("version").returncode == 0


class Plugin(http.client.HTTPConnection):
    """The plugin protocol spoken directly, over one connection, as dockerd speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))

    def raw(self, method: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a body of known length."""
        self.putrequest("POST", f"/{method}", skip_host=True, skip_accept_encoding=True)
        self.putheader("Host", "")
        self.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
        self.putheader("Content-Length", str(len(body)))
        self.endheaders(body)
        answer = self.getresponse()
        return answer.status, answer.read()

    def call(self, method: str, **fields: object) -> Any:
        """The JSON answer to a call with these fields."""
        status, body = self.raw(f"GraphDriver.{method}", json.dumps(fields).encode() + b"\n")
        assert status == 200, body
        return json.loads(body)

    def ok(self, method: str, **fields: object) -> Any:
        """The answer to a call that must not fail."""
        answer = self.call(method, **fields)
        assert "Err" not in answer, answer
        return answer

    def begin_apply(self, layer: str, parent: str = "") -> None:
        """The head of an ApplyDiff; `send_piece` and `end_apply` follow."""
        self.putrequest("POST", f"/GraphDriver.ApplyDiff?id={layer}&parent={parent}", skip_host=True)
        self.putheader("Host", "")
        self.putheader("Transfer-Encoding", "chunked")
        self.endheaders()

    def send_piece(self, piece: bytes) -> None:
        if piece:
            self.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end_apply(self) -> Any:
        self.send(b"0\r\n\r\n")
        answer = self.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)

    def apply(self, layer: str, tar: bytes, parent: str = "") -> Any:
        """A whole ApplyDiff, in pieces of 32 KiB as dockerd sends them."""
        self.begin_apply(layer, parent)
        for start in range(0, len(tar), 32768):
            self.send_piece(tar[start : start + 32768])
        return self.end_apply()

    def diff(self, layer: str, parent: str = "") -> bytes:
        """The tar of a Diff."""
        status, body = self.raw("GraphDriver.Diff", json.dumps({"ID": layer, "Parent": parent}).encode())
        assert status == 200, body
        return body
