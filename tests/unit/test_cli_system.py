"""`dmthin system install`: unit files and rules, valid to systemd and udev."""

import subprocess
from pathlib import Path

import pytest

from dmthin.cli import main


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    assert main(["system", "install", "--destdir", str(tmp_path)]) == 0
    return tmp_path


def test_files_are_where_systemd_and_udev_look(installed: Path) -> None:
    found = sorted(str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file())
    assert found == [
        "etc/systemd/system/dmthin-containerd.service",
        "etc/systemd/system/dmthin-containerd.socket",
        "etc/systemd/system/dmthin-docker.service",
        "etc/systemd/system/dmthin-docker.socket",
        "etc/udev/rules.d/12-dmthin.rules",
    ]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("docker", ["serve", "--docker"]),
        ("containerd", ["$DMTHIN_OPTIONS", "serve", "--containerd", "$DMTHIN_SNAPSHOTTERS"]),
    ],
)
def test_the_units_start_this_dmthin(installed: Path, engine: str, words: list[str]) -> None:
    service = (installed / f"etc/systemd/system/dmthin-{engine}.service").read_text()
    (line,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]
    program, *found = line.removeprefix("ExecStart=").split()
    assert found == words
    assert Path(program).is_file()


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    units = sorted((installed / "etc/systemd/system").iterdir())
    line = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(line, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "dmthin-" in line and "docker.service" not in line]
    assert ours == []


def test_nothing_is_written_by_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["system", "install", "--destdir", str(tmp_path), "--dry-run"]) == 0
    assert f"install -D -m 644 12-dmthin.rules {tmp_path}/etc/udev/rules.d/12-dmthin.rules" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_relative_destination_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["system", "install", "--destdir", "here"]) == 2
    assert "not an absolute path" in capsys.readouterr().err


def test_serve_requires_a_front_end_and_rejects_options_of_dockerd(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "pass --docker" in capsys.readouterr().err
    assert main(["serve", "--docker", "--storage-opt", "dm.basesize=20G"]) == 2
    assert "daemon.json" in capsys.readouterr().err
