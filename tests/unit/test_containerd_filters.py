"""containerd's filters: what each form takes, what is no filter, and that no text does anything else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmthin.containerd.filters import Adaptor, parse, parse_all
from dmthin.errors import InvalidValue

THING = {
    ("name",): "default/1/a b",
    ("parent",): "",
    ("kind",): "active",
    ("labels", "a", "b"): "dotted",
    ("labels", "x/y"): 'say "hi"',
    ("labels", "empty"): "",
}


def takes(text: str, thing: dict[tuple[str, ...], str] = THING) -> bool:
    adaptor: Adaptor = thing.get
    return parse(text)(adaptor)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "parent",
        'parent==""',
        "kind==active",
        "kind == active",
        "  kind==active, parent",
        "kind!=view",
        "nothing!=x",
        'name=="default/1/a b"',
        r'name=="default\x2f1\057a\u0020b"',
        r'name=="\U00000064efault/1/a b"',
        "name~=^default",
        "name~=/1/",
        r"name~=|/1/a\\sb$|",
        'name~="1/a"',
        r"name~=/default\/1/",
        "name~=|1/a b|",
        "labels.a.b==dotted",
        'labels."a".b',
        'labels."x/y"',
        r'labels."x/y"=="say \"hi\""',
        "labels.empty",
        'labels.empty==""',
        "nothing~=^$",
        "labels.a.b==dotted,labels.empty,kind!=view",
    ],
)
def test_it_takes(text: str) -> None:
    assert takes(text)


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        'nothing==""',
        "nothing==x",
        "labels",
        "labels.a",
        "labels.a.b.c",
        "kind==Active",
        "kind!=active",
        "kind==active,nothing",
        'kind=="active "',
        "name~=^a",
        "name~=(",
        "name~=[",
    ],
)
def test_it_leaves(text: str) -> None:
    assert not takes(text)


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("==x", 1),
        (",", 1),
        ("name==", 7),
        ("name==a,", 9),
        ("name==a b", 8),
        ("name==a ", 8),
        ("name=a", 6),
        ("name===a", 8),
        ("name@=a", 5),
        ("name==.a", 7),
        ("name==/a/", 7),
        ("labels.", 8),
        ("labels .a", 8),
        ("labels..a", 8),
        ('labels."a', 8),
        ('name=="a\nb"', 7),
        (r'name=="\q"', 7),
        (r'name=="\x1"', 7),
        (r'name=="\777"', 7),
        (r'name=="\uD800"', 7),
        (r'name=="\/"', 7),
        ("name==a\x00", 8),
        ("name a", 6),
        ("'name'==a", 1),
    ],
)
def test_what_is_no_filter_is_shown_where(text: str, character: int) -> None:
    with pytest.raises(InvalidValue, match=f"at character {character}:"):
        parse(text)


def test_one_of_several_must_take() -> None:
    adaptor: Adaptor = THING.get
    assert parse_all([])(adaptor)
    assert parse_all(["nothing", "kind==active"])(adaptor)
    assert parse_all(["nothing", ""])(adaptor)
    assert not parse_all(["nothing", "kind==view"])(adaptor)
    with pytest.raises(InvalidValue):
        parse_all(["name", "=="])


def test_bytes_that_are_no_text_are_kept() -> None:
    assert takes(r'name=="\xff\xc3\xa4"', {("name",): "\udcffä"})


@given(st.text())
def test_any_text_is_a_filter_or_an_error_that_shows_it(text: str) -> None:
    try:
        parse(text)(THING.get)
    except InvalidValue as error:
        assert repr(text) in str(error)


@given(st.text(st.characters(exclude_characters="\n\x00", codec="utf-8"), min_size=1))
def test_a_quoted_string_is_itself(text: str) -> None:
    quoted = '"' + re.sub(r'([\\"])', r"\\\1", text) + '"'
    assert takes(f"name=={quoted}", {("name",): text})
    assert takes(f"labels.{quoted}", {("labels", text): ""})
