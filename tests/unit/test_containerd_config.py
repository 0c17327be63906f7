"""`dmthin serve --containerd`: its snapshotters, and what containerd is told of them."""

import tomllib
from pathlib import Path

import pytest

from dmthin.cli import main
from dmthin.containerd.config import SnapshotterConfig, parse_snapshotters
from dmthin.errors import InvalidValue
from dmthin.units import GIB

ROOT = Path("/var/lib/dmthin")


def test_there_is_one_snapshotter_unless_more_are_named() -> None:
    assert parse_snapshotters([], ROOT) == (SnapshotterConfig("dmthin", ROOT),)


def test_each_has_the_store_and_the_size_that_it_names() -> None:
    plans = parse_snapshotters(["a", "b=/srv/b", "c,size=20G", "d=/srv/d,size=1G", "e,size=1000000000"], ROOT)
    assert plans == (
        SnapshotterConfig("a", ROOT),
        SnapshotterConfig("b", Path("/srv/b")),
        SnapshotterConfig("c", ROOT, 20 * GIB),
        SnapshotterConfig("d", Path("/srv/d"), GIB),
        SnapshotterConfig("e", ROOT, 1_000_001_536),
    )


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([""], "invalid snapshotter name ''"),
        (["a b"], "invalid snapshotter name 'a b'"),
        (["-a"], "invalid snapshotter name '-a'"),
        (["a="], "not an absolute path: ''"),
        (["a=srv"], "not an absolute path: 'srv'"),
        (["a,siz=1G"], "unknown option 'siz' of snapshotter a"),
        (["a,size=large"], "size of snapshotter a"),
        (["a,size=0"], "size of snapshotter a"),
        (["a", "a=/srv"], "'a' is specified twice"),
    ],
)
def test_what_makes_no_snapshotter_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        parse_snapshotters(texts, ROOT)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--containerd", "/run/x.sock", "--snapshotter", "big", "--print-containerd-config"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["proxy_plugins"]["big"]["address"] == "/run/x.sock"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--docker", "--snapshotter", "a"], "--snapshotter requires --containerd"),
        (["serve", "--docker", "--containerd-address", "/x"], "--containerd-address requires --containerd"),
        (["serve", "--docker", "--docker-root", "/x"], "--docker-root requires --containerd"),
        (["serve", "--containerd", "--docker-root", "x"], "--docker-root is not an absolute path: 'x'"),
        (["--storage-opt", "size=1G", "serve", "--containerd"], "the storage option size is valid for"),
        (["serve", "--containerd", "--snapshotter", "a b"], "invalid snapshotter name 'a b'"),
        (["serve", "--containerd", "--json"], "neither --dry-run nor --json"),
        (["serve"], "pass --docker, --containerd or both"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
