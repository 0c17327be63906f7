"""dockerd's requests as values: what is missing is empty, what is wrong is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.docker import protocol
from dmthin.docker.status import decimal_size
from dmthin.errors import DmthinError, InvalidValue


def test_init_as_dockerd_20_10_sends_it() -> None:
    body = b'{"Home":"/var/lib/docker/dmthin","Opts":["dm.basesize=5G"],"UIDMaps":null,"GIDMaps":null}\n'
    request = protocol.parse_init(protocol.parse_object(body))
    assert request == protocol.InitRequest(Path("/var/lib/docker/dmthin"), ("dm.basesize=5G",), (), ())


def test_id_maps_in_both_spellings() -> None:
    one = {"container_id": 0, "host_id": 100000, "size": 65536}
    other = {"ContainerID": 0, "HostID": 200000, "Size": 65536}
    request = protocol.parse_init({"Home": "/h", "Opts": None, "UIDMaps": [one], "GIDMaps": [other]})
    assert (request.uid_ranges, request.gid_ranges) == (((0, 100000, 65536),), ((0, 200000, 65536),))


def test_a_layer_with_everything_and_with_nothing() -> None:
    full = {"ID": "a1", "Parent": "b2", "MountLabel": "system_u:object_r:x:s0:c1,c2", "StorageOpt": {"size": "20G"}}
    request = protocol.parse_layer(full)
    assert request == protocol.LayerRequest("a1", "b2", "system_u:object_r:x:s0:c1,c2", ("size=20G",))
    assert protocol.parse_layer({"ID": "a1"}) == protocol.LayerRequest("a1")
    assert protocol.parse_layer({"ID": "a1", "Parent": None, "StorageOpt": None}) == protocol.LayerRequest("a1")


@pytest.mark.parametrize("text", ["f" * 64, "f" * 64 + "-init", "0123456789abcdefghijklmno", "with.dots_and-more"])
def test_ids_of_docker_and_buildkit(text: str) -> None:
    assert protocol.check_id(text) == text


@pytest.mark.parametrize("text", ["", "..", ".", "a/b", "../a", "-a", "a" * 129, "a\n", "ä", "a b", "a\0"])
def test_ids_that_are_no_names(text: str) -> None:
    with pytest.raises(InvalidValue, match="invalid layer id"):
        protocol.check_id(text)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no body.*try again"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        (b"1", "object"),
    ],
)
def test_bodies_that_are_no_requests(body: bytes, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        protocol.parse_object(body)


@pytest.mark.parametrize(
    "content",
    [
        {"ID": 7},
        {"ID": "a", "Parent": "../b"},
        {"ID": "a", "StorageOpt": ["size"]},
        {"ID": "a", "StorageOpt": {"size": 7}},
        {"ID": "a", "MountLabel": 'x"y'},
    ],
)
def test_layers_that_are_wrong(content: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        protocol.parse_layer(content)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"Home": "relative"},
        {"Home": "/h", "Opts": "dm.fs=xfs"},
        {"Home": "/h", "Opts": [1]},
        {"Home": "/h", "UIDMaps": [{"host_id": 1}]},
        {"Home": "/h", "UIDMaps": 1},
        {"Home": "/h", "GIDMaps": [{"container_id": 0, "host_id": "x", "size": 1}]},
    ],
)
def test_inits_that_are_wrong(content: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        protocol.parse_init(content)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["ID", "Home", "Opts", "UIDMaps", "x"]), inner),
).map(repr).map(str.encode))  # fmt: skip
def test_no_body_is_more_than_an_error(body: bytes) -> None:
    for parse in (protocol.parse_init, protocol.parse_layer):
        try:
            parse(protocol.parse_object(body))
        except DmthinError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (65536, "65.54kB"), (10737418240, "10.74GB"), (107374182400, "107.4GB"), (999, "999B"), (1000, "1kB")],
)
def test_sizes_as_docker_writes_them(size: int, text: str) -> None:
    assert decimal_size(size) == text
