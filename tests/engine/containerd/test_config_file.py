"""containerd's config.toml as `dmthin system containerd-config` changes it, read by containerd itself."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmthin.cli import main
from enginelib.daemons import ENGINES
from tests.support.command import COMMAND, Ran

CONTAINERD = ENGINES / "usr/bin/containerd"
SOCKET = "/run/dmthin/containerd.sock"

Configure = Callable[..., Ran]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration that containerd has written itself."""
    made = tmp_path / "config.toml"
    default = subprocess.run([CONTAINERD, "config", "default"], capture_output=True, text=True, check=True).stdout
    made.write_text(default.replace("oom_score", "# for the tests\noom_score", 1))
    made.chmod(0o640)
    return made


@pytest.fixture
def configure(path: Path, capsys: pytest.CaptureFixture[str]) -> Configure:
    def once(*words: str) -> Ran:
        capsys.readouterr()
        line = ["system", "containerd-config", "--config", str(path), "--containerd", str(CONTAINERD), *words]
        return Ran(main(line), *capsys.readouterr())

    return once


def dump(path: Path) -> dict[str, Any]:
    """Return the configuration that containerd makes of a file, without the file's name."""
    done = subprocess.run([CONTAINERD, "--config", path, "config", "dump"], capture_output=True, text=True, check=True)
    return {key: value for key, value in tomllib.loads(done.stdout).items() if key != "imports"}


def test_containerds_own_default_is_changed_and_changed_back(path: Path, configure: Configure) -> None:
    text, before, copy = path.read_text(), dump(path), path.with_name("config.toml.before-dmthin")
    ran = configure("--write", "--snapshotter", "dmthin", "--snapshotter", "big=/srv/big")
    next_ = "next: systemctl restart containerd"
    assert ran == Ran(0, "", f"changed {path}; the old one is {copy}; {next_}\n")
    assert copy.read_text() == text
    assert path.stat().st_mode & 0o777 == copy.stat().st_mode & 0o777 == 0o640
    now = dump(path)
    assert {name: plugin["address"] for name, plugin in now["proxy_plugins"].items()} == {
        "dmthin": SOCKET,
        "big": SOCKET,
    }
    assert {**now, "proxy_plugins": {}} == before
    assert "# for the tests" in path.read_text()
    changed = path.stat()
    assert configure("--write", "--snapshotter", "dmthin", "--snapshotter", "big=/srv/big") == Ran(
        0, "", f"{path} has it already\n"
    )
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (changed.st_ino, changed.st_mtime_ns)
    assert json.loads(configure("--json", "--write", "--cri", "--snapshotter", "dmthin").out)["changed"] is True
    assert dump(path)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "dmthin"
    assert configure("--remove", "--snapshotter", "dmthin", "--snapshotter", "big").status == 0
    assert dump(path) == before
    assert [line for line in path.read_text().splitlines() if line] == [line for line in text.splitlines() if line]
    assert configure("--remove") == Ran(0, "", f"{path} has nothing of it\n")
    assert sorted(os.listdir(path.parent)) == ["config.toml", "config.toml.before-dmthin"]


@pytest.mark.parametrize("text", ["", "# none\n", "version = 2\n", 'disabled_plugins = ["cri"]\n', None])
def test_small_files_and_none(path: Path, configure: Configure, text: str | None) -> None:
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert configure("--write").status == 0
    assert list(dump(path)["proxy_plugins"]) == ["dmthin"]
    assert tomllib.loads(path.read_text()).get("version") == (None if text and "disabled" in text else 2)


def test_a_file_of_dockers_package(path: Path, configure: Configure) -> None:
    """It has no version, and plugins have their short names in it."""
    text = 'disabled_plugins = ["cri"]\n'
    path.write_text(text)
    assert configure("--write", "--cri").status == 0
    path.write_text(path.read_text().replace(text, ""))
    assert dump(path)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "dmthin"


def test_a_link_stays_one(path: Path, configure: Configure) -> None:
    path.rename(path.with_name("real.toml"))
    path.symlink_to("real.toml")
    assert configure("--write").status == 0
    assert path.is_symlink()
    assert "dmthin" in dump(path)["proxy_plugins"]


def test_a_dry_run_shows_the_file(path: Path, configure: Configure) -> None:
    text = path.read_text()
    ran = configure("--write", "--dry-run")
    assert (path.read_text(), os.listdir(path.parent)) == (text, ["config.toml"])
    subprocess.run(["sh", "-euc", ran.out], check=True)
    assert "dmthin" in dump(path)["proxy_plugins"]
    assert configure("--write") == Ran(0, "", f"{path} has it already\n")


@pytest.mark.parametrize(
    ("text", "words", "status", "said"),
    [
        ('version = 2\noom_score = "many"\n', [], 1, "containerd does not take the result, .* is unchanged: .*"),
        ("version = 3\n", [], 2, r"the file has version 3, which containerd 1\.6\.20 does not read: .*"),
        ("version = 2\n", ["--diff"], 9, r"containerd 1\.6\.20 ends in a panic on a diff plugin: upgrade it .*"),
        ("version = 2\n", ["--containerd", "/nowhere/containerd"], 9, "the program /nowhere/containerd is missing: .*"),
        ("= 2\n", [], 2, "containerd's configuration is not TOML: .*"),
    ],
)
def test_what_containerd_would_not_take_is_not_written(
    path: Path, configure: Configure, text: str, words: list[str], status: int, said: str
) -> None:
    path.write_text(text)
    ran = configure("--write", *words)
    assert ran.status == status, ran.err
    assert re.fullmatch(f"dmthin: {said}\n", ran.err), ran.err
    assert (path.read_text(), os.listdir(path.parent)) == (text, ["config.toml"])


def test_a_diff_plugin_ends_this_containerd_in_a_panic(path: Path, configure: Configure) -> None:
    path.write_text("version = 2\n" + configure("--diff").out)
    done = subprocess.run([CONTAINERD, "--config", path, "config", "dump"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "panic" in done.stderr


def test_printed_twice_to_the_end_of_a_file(path: Path) -> None:
    for status in (0, 4):
        line = ["sh", "-c", f'"$@" serve --print-containerd-config >> {path}', "sh", *COMMAND]
        assert subprocess.run(line, check=False).returncode == status
        assert list(dump(path)["proxy_plugins"]) == ["dmthin"]
        assert dump(path)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "overlayfs"
