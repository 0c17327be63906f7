"""Names."""

import pytest

from dmthin.errors import InvalidValue
from dmthin.store.model import Kind, check_name


@pytest.mark.parametrize("name", ["a", "web-1", "A_b.c", "0", "x" * 128])
def test_names_for_both(name: str) -> None:
    assert check_name(name, Kind.CONTAINER) == name
    assert check_name(name, Kind.IMAGE) == name


@pytest.mark.parametrize("name", ["debian:12", "lab.local:5000/team/app:1.0", "app@sha256:abc"])
def test_images_may_have_tags(name: str) -> None:
    assert check_name(name, Kind.IMAGE) == name
    with pytest.raises(InvalidValue):
        check_name(name, Kind.CONTAINER)


@pytest.mark.parametrize("name", ["", " ", "-a", ".a", "_a", "a b", "a\n", "ä", "../a", "/a", "a/", "x" * 129, "@a"])
def test_names_for_neither(name: str) -> None:
    for kind in (Kind.CONTAINER, Kind.IMAGE):
        with pytest.raises(InvalidValue):
            check_name(name, kind)
