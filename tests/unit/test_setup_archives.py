"""How `scripts/setup --archives` gets archives out of source packages, with stand-ins for apt-get."""

import binascii
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from setuplib.archives import decoded, take_libarchive

SETUP = Path(__file__).resolve().parents[2] / "scripts/setuplib"

CALLER = """
set -euo pipefail
cache=$1 checkout=$2 venv=$3
say() { echo "$*" >&2; }
fail() { say "$*"; exit 1; }
quietly() { "$@"; }
apt() { apt-get "$@"; }
unpack_packages() { mkdir -p "$1"; }
. "$2/scripts/setuplib/archives.sh"
make_archives
"""
"""What scripts/setup has defined where it reads archives.sh."""

APT = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
    update) rm -f "$NO_LISTS" ;;
    indextargets*)
        [ ! -e "$NO_LISTS" ] || exit 0
        echo deb-src http://archive.example/debian/ bookworm main
        echo deb-src http://archive.example/debian/ bookworm-backports main ;;
    *source*) [ ! -e "$FAIL" ] ;;
esac
"""
PYTHON = '#!/bin/sh\nmkdir "$2/libarchive"; echo archives >> "$LOG"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stand-ins and a cache."""
    for name, script in {"bin/apt-get": APT, "venv/bin/python": PYTHON}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(script)
        path.chmod(0o755)
    return tmp_path


def make(place: Path) -> "subprocess.CompletedProcess[str]":
    """Ask for the archives."""
    own = {name: str(place / name.lower()) for name in ("LOG", "FAIL", "NO_LISTS")}
    own["PATH"] = f"{place / 'bin'}:{os.environ['PATH']}"
    line = ["bash", "-c", CALLER, "bash", str(place / "cache"), str(SETUP.parents[1]), str(place / "venv")]
    return subprocess.run(line, env=os.environ | own, capture_output=True, text=True)


def test_archives_are_made_once_with_lists_of_their_own(place: Path) -> None:
    for _ in range(2):
        done = make(place)
        assert done.returncode == 0, done.stderr
    lines = (place / "log").read_text().splitlines()
    assert lines.count("archives") == 1
    (source,) = (line for line in lines if "source" in line.split())
    assert f"Dir::State::Lists={place}/cache/archives.new/sources/lists" in source
    assert source.endswith("source --download-only libarchive tar")
    folder = place / "cache/archives"
    assert sorted(entry.name for entry in folder.iterdir()) == ["libarchive", "recipe"]
    assert [entry.name for entry in folder.parent.iterdir()] == ["archives"]


def test_the_lists_of_a_new_machine_come_first(place: Path) -> None:
    (place / "no_lists").touch()
    done = make(place)
    assert done.returncode == 0, done.stderr
    words = [line.split()[0] for line in (place / "log").read_text().splitlines()]
    assert words == ["indextargets", "update", "indextargets", "-o", "-o", "archives"]


def test_sources_that_are_out_of_reach_are_said_and_made_later(place: Path) -> None:
    (place / "fail").touch()
    done = make(place)
    assert done.returncode == 1
    said = "no source packages of libarchive tar can be had from: http://archive.example/debian/"
    assert done.stderr.splitlines()[-1] == said
    assert not (place / "cache/archives").exists()
    (place / "fail").unlink()
    assert make(place).returncode == 0


def uuencoded(data: bytes) -> bytes:
    lines = [binascii.b2a_uu(data[at : at + 45]) for at in range(0, len(data), 45)]
    return b"a comment\nbegin 644 name\n" + b"".join(lines) + b"`\nend\n"


def test_test_data_of_libarchive_is_decoded(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3
    with tarfile.open(tmp_path / "source.tar.xz", "w:xz") as tar:
        for name in (
            "libarchive-1/tar/test/one.tar.Z.uu",
            "libarchive-1/libarchive/test/two.uu",
            "libarchive-1/README",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(uuencoded(data))
            tar.addfile(info, io.BytesIO(uuencoded(data)))
    take_libarchive(tmp_path / "source.tar.xz", tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"tar/one.tar.Z": data}
    assert (tmp_path / "out/libarchive/two").read_bytes() == data


def test_a_line_with_too_many_characters_is_decoded_too() -> None:
    assert decoded(b"begin 644 name\n#86)C\n#86)CXYZ\n`\nend\n") == b"abcabc"


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (["--length", "300", "-f", "F"], (bytes(range(256)) * 2)[:300]),
        (["--length=2k", "--pattern=zeros", "--file", "F"], bytes(2048)),
        (
            ["--sparse", "--block-size", "4", "--file", "F", "0", "AB", "8", "C", "16"],
            b"AAAABBBB" + bytes(8) + b"CCCC" + bytes(16),
        ),
    ],
)
def test_files_for_the_tests_of_gnu_tar(tmp_path: Path, words: list[str], content: bytes) -> None:
    path = tmp_path / "file"
    line = [sys.executable, str(SETUP / "genfile.py"), *(str(path) if word == "F" else word for word in words)]
    subprocess.run(line, check=True)
    assert path.read_bytes() == content
