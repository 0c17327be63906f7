"""Sizes that cannot be are refused before anything is changed."""

import pytest

from dmthin.errors import InvalidValue
from dmthin.store.store import Store
from dmthin.units import GIB, TIB


@pytest.mark.parametrize(("size", "words"), [(17 * TIB, "too large for ext4"), (GIB + 1, "multiple of 1K")])
def test_a_size_that_the_file_system_cannot_have(store: Store, image: str, size: int, words: str) -> None:
    store.containers.create(image, "web")
    before = store.ledger.volumes()
    with pytest.raises(InvalidValue, match=words):
        store.containers.resize("web", size)
    with pytest.raises(InvalidValue, match=words):
        store.containers.create(image, "other", size=size)
    assert store.ledger.volumes() == before
