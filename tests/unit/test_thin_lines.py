"""The lines of thin-pool and thin targets: tables both ways, every form of the status line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.errors import KernelError
from dmthin.kernel.devicemapper import Target
from dmthin.kernel.thin import PoolFeature, PoolMode, PoolStatus, PoolTable, ThinStatus, ThinTable
from dmthin.units import GIB, KIB, MIB, SECTOR

DEVICE = st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20)).map(lambda pair: f"{pair[0]}:{pair[1]}")
SECTORS = st.integers(0, 1 << 40).map(lambda count: count * SECTOR)


def status(text: str) -> PoolStatus:
    return PoolStatus.parse([Target(0, 2048, "thin-pool", text)])


def test_a_pool_that_works() -> None:
    line = "7 60/512 1024/16384 - rw discard_passdown queue_if_no_space - 128 "
    assert status(line) == PoolStatus(
        mode=PoolMode.READ_WRITE,
        transaction_id=7,
        metadata_used_blocks=60,
        metadata_total_blocks=512,
        data_used_blocks=1024,
        data_total_blocks=16384,
        held_metadata_root=None,
        discard="discard_passdown",
        no_space_policy="queue_if_no_space",
        needs_check=False,
        metadata_low_water_blocks=128,
    )


@pytest.mark.parametrize(
    ("word", "mode"),
    [("rw", PoolMode.READ_WRITE), ("ro", PoolMode.READ_ONLY), ("out_of_data_space", PoolMode.OUT_OF_DATA_SPACE)],
)
@pytest.mark.parametrize("needs_check", [True, False])
def test_every_mode_with_and_without_needs_check(word: str, mode: PoolMode, needs_check: bool) -> None:
    mark = "needs_check" if needs_check else "-"
    found = status(f"0 1/2 3/4 99 {word} no_discard_passdown error_if_no_space {mark} 1024 ")
    assert (found.mode, found.needs_check, found.held_metadata_root) == (mode, needs_check, 99)
    assert (found.discard, found.no_space_policy) == ("no_discard_passdown", "error_if_no_space")


@pytest.mark.parametrize("word", ["Fail", "Error"])
def test_a_pool_that_tells_nothing(word: str) -> None:
    assert status(word) == PoolStatus(PoolMode.FAIL)
    assert status(f"{word} ").metadata_net_used_blocks == 0


def test_a_kernel_before_4_19_names_no_metadata_low_water() -> None:
    line = "0 60/512 0/16 - rw ignore_discard queue_if_no_space -"
    assert status(line).metadata_low_water_blocks == 0


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="sideways"):
        status("0 60/512 0/16 - sideways discard_passdown queue_if_no_space - 1")


@pytest.mark.parametrize(("used", "total", "reserve"), [(1648, 16384, 1638), (60, 512, 51), (5000, 524288, 4096)])
def test_the_reserve_is_told_apart_from_use(used: int, total: int, reserve: int) -> None:
    found = status(f"0 {used}/{total} 0/16 - rw discard_passdown queue_if_no_space - 128 ")
    assert found.metadata_reserve_blocks == reserve
    assert found.metadata_net_used_blocks == used - reserve


@given(used=st.integers(0, 1 << 22), total=st.integers(0, 1 << 22))
def test_the_reserve_is_never_more_than_what_is_used(used: int, total: int) -> None:
    found = PoolStatus(PoolMode.READ_WRITE, metadata_used_blocks=used, metadata_total_blocks=total)
    assert 0 <= found.metadata_net_used_blocks <= used
    assert found.metadata_reserve_blocks + found.metadata_net_used_blocks == used


def test_a_pool_table_as_text() -> None:
    table = PoolTable(GIB, "7:0", "7:1", 64 * KIB, 100, ("skip_block_zeroing", "error_if_no_space"))
    assert str(table.target()) == "0 2097152 thin-pool 7:0 7:1 128 100 2 skip_block_zeroing error_if_no_space"
    assert str(PoolTable(MIB, "7:0", "7:1", 64 * KIB, 0, ()).target()) == "0 2048 thin-pool 7:0 7:1 128 0"


@given(
    size=SECTORS,
    metadata=DEVICE,
    data=DEVICE,
    block_size=SECTORS,
    low_water=st.integers(0, 1 << 30),
    features=st.lists(st.sampled_from(list(PoolFeature)), unique=True).map(tuple),
)
def test_a_pool_table_reads_back(
    size: int, metadata: str, data: str, block_size: int, low_water: int, features: tuple[str, ...]
) -> None:
    table = PoolTable(size, metadata, data, block_size, low_water, features)
    assert PoolTable.parse([table.target()]) == table


def test_the_kernels_own_pool_table_has_a_space_at_its_end() -> None:
    table = PoolTable.parse([Target(0, 2048, "thin-pool", "7:0 7:1 128 100 1 skip_block_zeroing ")])
    assert table == PoolTable(MIB, "7:0", "7:1", 64 * KIB, 100)
    assert PoolTable.parse([Target(0, 2048, "thin-pool", "7:0 7:1 128 100 0 ")]).features == ()


@given(size=SECTORS, pool=DEVICE, device_id=st.integers(0, (1 << 24) - 1))
def test_a_thin_table_reads_back(size: int, pool: str, device_id: int) -> None:
    table = ThinTable(size, pool, device_id)
    assert ThinTable.parse([table.target()]) == table


def test_a_thin_table_with_an_external_origin() -> None:
    assert ThinTable.parse([Target(0, 2048, "thin", "254:0 9 7:2")]) == ThinTable(MIB, "254:0", 9)


@pytest.mark.parametrize(
    ("text", "mapped", "highest"),
    [
        ("0 -", 0, 0),
        ("128 767", 64 * KIB, 384 * KIB),
        ("Fail", None, None),
        ("Error", None, None),
        ("-", None, None),
        ("", None, None),
    ],
)
def test_a_thin_status(text: str, mapped: int | None, highest: int | None) -> None:
    assert ThinStatus.parse([Target(0, 2048, "thin", text)]) == ThinStatus(mapped, highest)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ([], "no table"),
        ([Target(0, 8, "error", "")], "error"),
        ([Target(0, 8, "thin", "1"), Target(8, 8, "linear", "")], "thin, linear"),
    ],
)
def test_another_target_is_named(targets: list[Target], found: str) -> None:
    for parse in (PoolStatus.parse, PoolTable.parse, ThinStatus.parse, ThinTable.parse):
        with pytest.raises(KernelError, match=f"found: {found}$"):
            parse(targets)
