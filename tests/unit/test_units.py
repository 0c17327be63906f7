"""Sizes as Docker reads them, and as dmthin writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin import units
from dmthin.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10G", 10737418240),
        ("10GB", 10737418240),
        ("10GiB", 10737418240),
        ("10 gb", 10737418240),
        ("1.5k", 1536),
        ("0.3", 0),
        ("7b", 7),
        (" 2T ", 2199023255552),
    ],
)
def test_sizes_have_binary_multiples_and_dockers_grammar(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e3", "10  G", "10X", "1,5G", "10Gi", "٣G", "0x10", "inf"])
def test_what_is_no_size_is_named(text: str) -> None:
    if text == "10Gi":
        assert units.parse_size(text + "b") == 10 << 30
    with pytest.raises(InvalidValue, match=r"dm\.basesize: .* is not a size"):
        units.parse_size(text, "dm.basesize")


@given(st.integers(0, 1 << 60))
def test_an_exact_size_reads_back(size: int) -> None:
    assert units.parse_size(units.format_exact(size)) == size


@given(st.integers(1, 1 << 59))
def test_a_short_size_is_within_half_a_percent(size: int) -> None:
    text = units.format_size(size)
    assert len(text) <= 5
    assert abs(units.parse_size(text) - size) <= size * 0.0051 + 1


@given(st.integers(0, 1 << 60))
def test_a_volume_has_whole_blocks_of_a_file_system_and_no_less_than_was_asked_for(size: int) -> None:
    rounded = units.volume_size(size)
    assert rounded % 4096 == 0
    assert 0 <= rounded - size < 4096


@pytest.mark.parametrize(("text", "truth"), [("1", True), ("T", True), ("False", False), ("0", False)])
def test_truth_values_are_gos(text: str, truth: bool) -> None:
    assert units.parse_bool(text, "x") is truth


@pytest.mark.parametrize("text", ["yes", "", "tRUE", "on"])
def test_other_words_are_no_truth_values(text: str) -> None:
    with pytest.raises(InvalidValue, match="neither true nor false"):
        units.parse_bool(text, "x")


def test_percentages() -> None:
    assert units.parse_percent("10%", "x") == 10
    assert units.parse_percent("10", "x") == 10
    for text in ("100%", "-1%", "1.5%", "%", "10 %"):
        with pytest.raises(InvalidValue):
            units.parse_percent(text, "x")
    with pytest.raises(InvalidValue):
        units.parse_percent("10", "x", sign_required=True)
