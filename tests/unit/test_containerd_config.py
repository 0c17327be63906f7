"""`dmthin serve --containerd`: its snapshotters, and what containerd is told of them."""

import tomllib
from pathlib import Path

import pytest

from dmthin.cli import main
from dmthin.cli.containerd_config import parse_release
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


@pytest.mark.parametrize(
    ("said", "release"),
    [
        ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1", (1, 7, 24)),
        ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", (2, 1, 9)),
        ("containerd github.com/containerd/containerd/v2 v2.2.0 1c4457e00facac03ce1d75f7b6777a7a851e5c41", (2, 2, 0)),
        ("containerd github.com/containerd/containerd v1.7.20 8fc6bcff51318944179630522a095cc9dbf9f353", (1, 7, 20)),
        ("containerd containerd.io v2.2.1 dea7da592f5d1d2b7755e3a161be07f43fad8f75", (2, 2, 1)),
        ("containerd of nobody", None),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", (1, 7, 27)),
    ],
)
def test_the_releases_that_packages_of_containerd_tell(said: str, release: tuple[int, ...] | None) -> None:
    assert parse_release(said) == release
