"""containerd's config.toml: what is merged into it, and taken out of it again."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.containerd.config import parse_snapshotters
from dmthin.containerd.host_config import Wanted, has_all, merged, printed, version_of, without
from dmthin.errors import DmthinError, InvalidValue

ROOT, SOCKET = Path("/var/lib/dmthin"), Path("/run/dmthin/containerd.sock")
ONE = parse_snapshotters([], ROOT)
TWO = parse_snapshotters(["dmthin", 'big=/srv/a "b"'], ROOT)

VERSION_2 = """\
# by hand, of 2019
disabled_plugins = [] # none
version = 2

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins]

  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "pause:3.6" # ours

    [plugins."io.containerd.grpc.v1.cri".containerd]
      disable_snapshot_annotations = true
      snapshotter = "overlayfs" # for all

  [plugins."io.containerd.service.v1.diff-service"]
    default = ["walking"]

[proxy_plugins]

[stream_processors]
"""

VERSION_3 = """\
version = 3

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'
    disable_snapshot_annotations = true

  [plugins.'io.containerd.transfer.v1.local']
    max_concurrent_downloads = 3

[cgroup]
  path = ''
"""


def everything(text: str) -> Wanted:
    version = version_of(text) or 2
    return Wanted(TWO, SOCKET, version, cri=True, diff=True, transfer=version == 3)


def test_the_proxy_plugins_alone_are_printed() -> None:
    config = tomllib.loads(printed(Wanted(TWO, SOCKET)))
    assert list(config) == ["proxy_plugins"]
    assert list(config["proxy_plugins"]) == ["dmthin", "big"]
    for plugin in config["proxy_plugins"].values():
        assert plugin["type"] == "snapshot"
        assert plugin["address"] == str(SOCKET)
    assert config["proxy_plugins"]["big"]["exports"]["root"] == '/srv/a "b"'


def test_what_the_kubelet_needs_has_the_form_of_the_version() -> None:
    two = tomllib.loads(printed(Wanted(ONE, SOCKET, 2, cri=True)))["plugins"]
    assert two == {
        "io.containerd.grpc.v1.cri": {"containerd": {"snapshotter": "dmthin", "disable_snapshot_annotations": False}}
    }
    three = tomllib.loads(printed(Wanted(ONE, SOCKET, 3, cri=True, transfer=True)))["plugins"]
    images = {"snapshotter": "dmthin", "disable_snapshot_annotations": False}
    assert three["io.containerd.cri.v1.images"] == images
    unpacking = three["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [(entry["snapshotter"], entry["differ"]) for entry in unpacking] == [
        ("overlayfs", "walking"), ("dmthin", "walking")
    ]  # fmt: skip


def test_a_differ_has_an_id_of_its_own() -> None:
    config = tomllib.loads(printed(Wanted(ONE, SOCKET, 3, diff=True, transfer=True)))
    assert config["proxy_plugins"]["dmthin-diff"] == {
        "type": "diff", "address": str(SOCKET), "platform": "linux/dmthin"
    }  # fmt: skip
    assert config["plugins"]["io.containerd.service.v1.diff-service"]["default"] == ["dmthin-diff", "walking"]
    unpacking = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [entry["differ"] for entry in unpacking] == ["walking", "dmthin-diff"]


def test_comments_and_everything_else_stay() -> None:
    for text in (VERSION_2, VERSION_3):
        after = merged(text, everything(text))
        assert set(text.splitlines()) - set(after.splitlines()) == {
            line
            for line in text.splitlines()
            if "snapshotter =" in line or "annotations" in line or "default =" in line
        }
        assert merged(after, everything(text)) == after
        assert has_all(after, everything(text))
        assert not has_all(text, everything(text))
    lines = merged(VERSION_2, everything(VERSION_2)).splitlines()
    assert '      snapshotter = "dmthin" # dmthin: was "overlayfs" # for all' in lines
    assert '    default = ["dmthin-diff", "walking"] # dmthin: was ["walking"]' in lines


@pytest.mark.parametrize("text", [VERSION_2, VERSION_3])
def test_what_was_replaced_comes_back(text: str) -> None:
    for before in (merged(text, everything(text)), text):
        back = without(before, everything(text))
        assert list(filter(None, back.splitlines())) == list(filter(None, text.splitlines()))
        assert tomllib.loads(back) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "version"), [("", None), ("# nothing\n", None), ('disabled_plugins = ["cri"]\n', 1), ("version = 3\n", 3)]
)
def test_the_version_of_a_file(text: str, version: int | None) -> None:
    assert version_of(text) == version


def test_a_file_without_a_key_gets_the_version() -> None:
    after = merged("# a comment\n", Wanted(ONE, SOCKET, 3, transfer=True))
    assert after.startswith("# a comment\nversion = 3\n")
    assert tomllib.loads(after)["version"] == 3


def test_a_file_of_version_1_has_short_names_of_plugins() -> None:
    """Docker's package of containerd installs such a file, with CRI turned off."""
    text = '# see the docs\ndisabled_plugins = ["cri"]\n'
    after = merged(text, Wanted(ONE, SOCKET, 1, cri=True, diff=True))
    assert after.startswith(text)
    plugins = tomllib.loads(after)["plugins"]
    assert plugins["diff-service"] == {"default": ["dmthin-diff", "walking"]}
    assert plugins["cri"]["containerd"]["snapshotter"] == "dmthin"
    assert without(after, Wanted(ONE, SOCKET, 1)) == text


def test_containerd_2_converts_no_kubelets_part_of_version_1() -> None:
    after = merged("root = '/r'\n", Wanted(ONE, SOCKET, 1, cri=True, diff=True, transfer=True))
    plugins = tomllib.loads(after)["plugins"]
    assert sorted(plugins) == ["diff-service", "io.containerd.cri.v1.images", "io.containerd.transfer.v1.local"]
    assert plugins["io.containerd.cri.v1.images"]["snapshotter"] == "dmthin"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = [", "not TOML"),
        ("a = 1\na = 2\n", "not TOML"),
        ("version = 2\nproxy_plugins = 3\n", "proxy_plugins.dmthin is not a table"),
        ("version = 4\n", "knows the versions 1, 2 and 3"),
        ('version = "2"\n', "knows the versions 1, 2 and 3"),
    ],
)
def test_what_cannot_be_changed_is_named(text: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        merged(text, Wanted(ONE, SOCKET, version_of(text) or 2))


FORMS = (
    'proxy_plugins = { other = { type = "snapshot", address = "/s" } }\n',
    'proxy_plugins.other.type = "snapshot"\nproxy_plugins.other.address = "/s"\n',
    '[proxy_plugins.other]\ntype = "snapshot"\naddress = "/s"\n[a]\nb = 1\n[proxy_plugins.third]\naddress = "/t"\n',
    '[proxy_plugins.dmthin]\ntype = "snapshot"\naddress = "/former.sock"\n',
    '[plugins."io.containerd.grpc.v1.cri".containerd]\n[a]\n[plugins."io.containerd.grpc.v1.cri"]\nx = 1\n',
    '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\nsnapshotter = "native"\n',
    '[plugins]\n"io.containerd.grpc.v1.cri" = { containerd = { snapshotter = "native" } }\n',
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", [2, 3])
def test_every_form_of_toml_is_changed_right_or_not_at_all(form: str, version: int) -> None:
    text = f"version = {version}\n{form}"
    wanted = everything(text)
    try:
        after = merged(text, wanted)
    except DmthinError as error:
        assert "cannot be changed without a fault" in str(error)
        return
    before, now = tomllib.loads(text), tomllib.loads(after)
    assert has_all(after, wanted)
    assert_kept(before, now, ("address", "snapshotter"))
    assert merged(after, wanted) == after
    assert not has_all(without(after, wanted), wanted)


def assert_kept(before: dict[str, Any], now: dict[str, Any], changed: tuple[str, ...]) -> None:
    for key, value in before.items():
        if isinstance(value, dict):
            assert_kept(value, now[key], changed)
        elif isinstance(value, list):
            assert all(entry in now[key] for entry in value)
        else:
            assert key in changed or now[key] == value


NAMES = st.sampled_from(
    ["grpc", "plugins", "proxy_plugins", "io.containerd.grpc.v1.cri", "containerd", "dmthin", "a b"]
)
VALUES = st.recursive(
    st.integers(0, 9) | st.booleans() | st.sampled_from(["overlayfs", "x # y"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(inner)}' for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_no_configuration_becomes_another(config: dict[str, Any]) -> None:
    text = "version = 2\n" + "".join(f'"{key}" = {_toml(value)}\n' for key, value in config.items())
    wanted = Wanted(ONE, SOCKET, 2, cri=True)
    try:
        after = merged(text, wanted)
    except DmthinError:
        return
    assert has_all(after, wanted)
    assert tomllib.loads(after)["version"] == 2
