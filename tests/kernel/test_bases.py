"""Bases, the empty file systems that images are made of: when they are made and removed, what mkfs is told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.errors import InvalidValue
from dmthin.store.create import create_store
from dmthin.store.store import Store
from dmthin.units import MIB
from tests.support import thintools
from tests.support.processes import in_processes
from tests.support.stores import SMALL


def test_a_base_goes_with_its_last_image(store: Store, tree: Path) -> None:
    empty = store.pool.status().data_used
    store.images.import_("one", tree)
    store.images.import_("two", tree)
    store.images.import_("large", tree, size=300 * MIB)
    store.containers.create("one", "web")
    store.images.remove("two")
    assert bases(store) == ["@base/ext4/256M", "@base/ext4/300M"]
    store.images.remove("large")
    assert bases(store) == ["@base/ext4/256M"]
    store.images.commit("web", "three")
    store.containers.remove("web")
    left = [name for name in ("three", "one") if store.ledger.find(name)]
    for name in left:
        store.images.remove(name)
    assert store.ledger.volumes() == []
    assert store.pool.status().data_used == empty
    store.images.import_("again", tree)
    assert bases(store) == ["@base/ext4/256M"]


def test_a_base_that_goes_while_another_wants_it(store: Store, tree: Path) -> None:
    root = store.layout.root
    store.ledger.close()

    def coming_and_going(number: int) -> Callable[[Store], None]:
        def work(store: Store) -> None:
            for turn in range(3):
                store.images.import_(f"i{number}-{turn}", tree)
                store.images.remove(f"i{number}-{turn}")

        return work

    in_processes(root, *(coming_and_going(number) for number in range(3)))
    assert store.ledger.volumes() == []
    assert thintools.ids_in(store) == set()


def bases(store: Store) -> list[str]:
    return [volume.name for volume in store.ledger.volumes() if volume.kind == "base"]


@pytest.mark.parametrize(
    "arguments",
    [("-E", "stride=16"), ("-Estride=16",)],
    ids=" ".join,
)
def test_mkfs_arguments_leave_no_table_unwritten(
    make_store: Callable[..., Store], tree: Path, arguments: tuple[str, ...]
) -> None:
    store = make_store(*(f"dm.mkfsarg={argument}" for argument in arguments))
    plain = make_store(name="plain")
    used = []
    for each in (store, plain):
        each.images.import_("image", tree)
        used.append(each.pool.status().data_used)
    assert used[0] >= used[1] * 0.95, "tables of the file system were not written"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("-E", "lazy_itable_init=1,lazy_journal_init=1"), "lazy_itable_init"),
        (("-Elazy_itable_init=1",), "lazy_itable_init"),
        (("-qE", "lazy_journal_init=1"), "lazy_journal_init"),
        (("-E", "stride=16,assume_storage_prezeroed=1"), "assume_storage_prezeroed"),
    ],
    ids=str,
)
def test_mkfs_arguments_that_would_leave_tables_unwritten_are_refused(
    scratch: Path, arguments: tuple[str, ...], option: str
) -> None:
    with pytest.raises(InvalidValue, match=rf"dm\.mkfsarg: {option} cannot be chosen"):
        create_store(scratch / "store", (*SMALL, *(f"dm.mkfsarg={argument}" for argument in arguments)))
    assert not (scratch / "store").exists()
