"""How `scripts/setup --system` keeps a system in the cache, with stand-ins for apt-get and mmdebstrap."""

import os
import subprocess
from pathlib import Path

import pytest

SYSTEMS = Path(__file__).resolve().parents[2] / "scripts/setuplib/systems.sh"
LOADER = b"\x7fELF\0/lib64/ld-linux-x86-64.so.2\0GNU\n\0"

CALLER = """
set -euo pipefail
cache=$1
say() { echo "$*" >&2; }
fail() { say "$*"; exit 1; }
quietly() { "$@"; }
apt() { :; }
. "$2"
require_root() { :; }
eval "$3"
make_system trixie
"""
"""What scripts/setup has defined where it reads systems.sh; $3 is what a test changes."""

PROGRAMS = {
    "apt-get": "echo http://archive.example/debian/",
    "unshare": 'shift; exec "$@"',
    "mmdebstrap": """
        echo "$@" >> "$LOG"
        for word; do case $word in */systems/*) folder=$word ;; esac; done
        mkdir -p "$folder/usr/bin" "$folder/etc"
        cp "$LOADER" "$folder/usr/bin/linux.uml"
        [ ! -e "$FAIL" ] || exit 1
    """,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stand-ins and a cache."""
    (tmp_path / "bin").mkdir()
    for name, script in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "loader").write_bytes(LOADER)
    return tmp_path


def make(place: Path, change: str = "") -> "subprocess.CompletedProcess[str]":
    """Ask for the system trixie."""
    own = {"LOG": place / "log", "LOADER": place / "loader", "FAIL": place / "fail"}
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"} | {k: str(v) for k, v in own.items()}
    line = ["bash", "-c", CALLER, "bash", str(place / "cache"), str(SYSTEMS), change]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


def made(place: Path) -> list[str]:
    """The command lines of mmdebstrap so far."""
    log = place / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_a_system_is_made_once_from_the_archive_of_this_machine(place: Path) -> None:
    for _ in range(2):
        done = make(place)
        assert done.returncode == 0, done.stderr
    (line,) = made(place)
    assert line.endswith("trixie.new deb http://archive.example/debian/ trixie main")
    assert "docker.io" in line
    folder = place / "cache/systems/trixie"
    assert (folder / "usr/bin/linux.here").read_bytes() == LOADER.replace(b"/lib64/ld", b"lib64//ld")
    assert [entry.name for entry in folder.parent.iterdir()] == ["trixie"]


@pytest.mark.parametrize("change", ["recipe_version=other", "system_packages+=(another)"])
def test_another_recipe_makes_it_anew(place: Path, change: str) -> None:
    assert make(place).returncode == 0
    (place / "cache/systems/trixie/old").touch()
    assert make(place, change).returncode == 0
    assert len(made(place)) == 2
    assert not (place / "cache/systems/trixie/old").exists()


def test_one_that_was_interrupted_is_no_system_and_is_made_anew(place: Path) -> None:
    (place / "fail").touch()
    assert make(place).returncode != 0
    assert not (place / "cache/systems/trixie").exists()
    (place / "cache/systems/trixie.new/half").touch()
    (place / "fail").unlink()
    assert make(place).returncode == 0
    assert not (place / "cache/systems/trixie/half").exists()
    assert not (place / "cache/systems/trixie.new").exists()
