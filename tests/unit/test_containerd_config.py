"""`dmthin serve --containerd`: its snapshotters, and what containerd is told of them."""

import tomllib
from pathlib import Path

import pytest

from dmthin.cli import main
from dmthin.containerd.config import SnapshotterPlan, containerd_config, parse_plans
from dmthin.errors import InvalidValue
from dmthin.units import GIB

ROOT = Path("/var/lib/dmthin")


def test_there_is_one_snapshotter_unless_more_are_named() -> None:
    assert parse_plans([], ROOT) == (SnapshotterPlan("dmthin", ROOT),)


def test_each_has_the_store_and_the_size_that_it_names() -> None:
    plans = parse_plans(["a", "b=/srv/b", "c,size=20G", "d=/srv/d,size=1G"], ROOT)
    assert plans == (
        SnapshotterPlan("a", ROOT),
        SnapshotterPlan("b", Path("/srv/b")),
        SnapshotterPlan("c", ROOT, 20 * GIB),
        SnapshotterPlan("d", Path("/srv/d"), GIB),
    )


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([""], "'' is no name"),
        (["a b"], "'a b' is no name"),
        (["-a"], "'-a' is no name"),
        (["a="], "no absolute path: ''"),
        (["a=srv"], "no absolute path: 'srv'"),
        (["a,siz=1G"], "unknown option 'siz' of the snapshotter a"),
        (["a,size=large"], "size of the snapshotter a"),
        (["a,size=0"], "size of the snapshotter a"),
        (["a", "a=/srv"], "'a' is given twice"),
    ],
)
def test_what_makes_no_snapshotter_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        parse_plans(texts, ROOT)


def test_what_is_printed_is_toml_that_names_every_snapshotter() -> None:
    plans = parse_plans(["dmthin", 'big=/srv/a "b"'], ROOT)
    config = tomllib.loads(containerd_config(plans, Path("/run/dmthin/containerd.sock")))
    assert list(config["proxy_plugins"]) == ["dmthin", "big"]
    for plugin in config["proxy_plugins"].values():
        assert plugin["type"] == "snapshot"
        assert plugin["address"] == "/run/dmthin/containerd.sock"
    assert config["proxy_plugins"]["big"]["exports"]["root"] == '/srv/a "b"'
    assert config["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "dmthin"


def test_the_comments_hold_the_same_for_containerd_2() -> None:
    text = containerd_config(parse_plans([], ROOT), Path("/s"))
    commented = [line[2:] for line in text.split("# The same for containerd 2.x:\n")[1].splitlines()]
    plugins = tomllib.loads("\n".join(commented))["plugins"]
    assert plugins["io.containerd.cri.v1.images"]["snapshotter"] == "dmthin"
    (unpack,) = plugins["io.containerd.transfer.v1.local"]["unpack_config"]
    assert unpack["snapshotter"] == "dmthin"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--containerd", "/run/x.sock", "--snapshotter", "big", "--print-containerd-config"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["proxy_plugins"]["big"]["address"] == "/run/x.sock"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--docker", "--snapshotter", "a"], "--snapshotter belongs to --containerd"),
        (["--storage-opt", "size=1G", "serve", "--containerd"], "the storage option size is for"),
        (["serve", "--containerd", "--snapshotter", "a b"], "is no name for a snapshotter"),
        (["serve", "--containerd", "--json"], "neither --dry-run nor --json"),
        (["serve"], "give --docker, --containerd or both"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
