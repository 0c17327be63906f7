"""Names: of volumes, and of their devices."""

import pytest

from dmthin.errors import InvalidValue
from dmthin.store.state.model import Kind, StoreRecord, StoreState, check_name, new_uuid


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


def test_whose_device_a_name_is() -> None:
    record = StoreRecord(new_uuid(), StoreState.READY, 65536, "data", "metadata", "", (), 1, False)
    assert record.device_id_of(record.device_name(7)) == 7
    others = (f"{record.prefix}-tdata", f"{record.prefix}-", f"{record.prefix}7", "dmthin-0-7", "7")
    for name in (record.pool_name, *others):
        assert record.device_id_of(name) is None
