"""Rules of the OCI image specification: what an image's configuration says of its layers, or what a stranger wrote."""

import hashlib

import pytest

from dmthin.oci import chain_ids, diff_ids, is_digest

A, B = (f"sha256:{letter * 64}" for letter in "ab")


def test_chain_ids() -> None:
    second = f"sha256:{hashlib.sha256(f'{A} {B}'.encode()).hexdigest()}"
    assert list(chain_ids([A, B])) == [A, second]


def test_diff_ids_of_a_configuration() -> None:
    assert diff_ids({"rootfs": {"type": "layers", "diff_ids": [A, B]}}) == [A, B]


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        {},
        {"rootfs": None},
        {"rootfs": {"diff_ids": None}},
        {"rootfs": {"diff_ids": A}},
        {"rootfs": {"diff_ids": [A, 7]}},
        {"rootfs": {"diff_ids": [A, "\ud800"]}},
        {"rootfs": {"diff_ids": [A] * 1025}},
    ],
)
def test_configurations_that_are_none(config: object) -> None:
    assert diff_ids(config) == []


@pytest.mark.parametrize("text", ["", "sha256:", A[:-1], A.upper(), A + "\n", "sha256:" + "x" * 300, None, 7])
def test_digests_that_are_none(text: object) -> None:
    assert not is_digest(text)
    assert is_digest(A)
