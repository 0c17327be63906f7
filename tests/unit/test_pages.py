"""The commands that documents show: each page says where its commands are typed, and how they are read."""

from pathlib import Path

import pytest

from tests.support.pages import NOWHERE, Typed, commands

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])

PAGE = """\
<!-- typed on sid -->
```console
$ first --word
one  two ...
...
last
$ second
```

1. A list.

   ```console
   $ cat > file <<'END'
   {"a": 1}
   END
   $ third
   printed
   ```

<!-- typed on nowhere -->
```console
$ fourth
```
"""


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_commands_of_a_page(tmp_path: Path) -> None:
    assert commands(page(tmp_path, PAGE)) == [
        Typed(3, "first --word", "one  two ...\n...\nlast", "sid"),
        Typed(7, "second", "", "sid"),
        Typed(13, "cat > file <<'END'\n{\"a\": 1}\nEND", "", "sid"),
        Typed(16, "third", "printed", "sid"),
        Typed(22, "fourth", "", NOWHERE),
    ]


def test_a_block_without_a_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1"):
        commands(page(tmp_path, "```console\n$ first\n```\n"))


def test_blocks_of_other_languages_are_none(tmp_path: Path) -> None:
    assert commands(page(tmp_path, "```\n$ first\n```\n```python\nx\n```\n")) == []


@pytest.mark.parametrize(
    ("printed", "agrees"),
    [
        ("one two three\na\nb\nlast\n", True),
        ("one   two  \nlast\n", True),
        ("one two three\nb", False),
        ("one\nlast\n", False),
        ("none two x\nlast\n", False),
    ],
)
def test_what_a_command_prints(tmp_path: Path, printed: str, agrees: bool) -> None:
    assert commands(page(tmp_path, PAGE))[0].agrees(printed) is agrees


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_each_document_says_where_its_commands_are_typed(document: Path) -> None:
    for typed in commands(document):
        assert typed.system in ("bookworm", "trixie", "sid", NOWHERE), typed
