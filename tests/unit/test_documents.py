"""The documents agree with the code: links and paths lead somewhere, tables are complete, records have a form."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmthin
from dmthin import errors
from dmthin.cli import commands
from dmthin.errors import DmthinError
from dmthin.store.config.options import KNOWN

CHECKOUT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
RECORDS = sorted(CHECKOUT.glob("docs/decisions/*.md"))
SECTIONS = ["Context", "Decision", "Evidence", "Alternatives", "Consequences"]
MODULES = [path.as_posix() for path in (CHECKOUT / "dmthin").rglob("*.py")]


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def prose(path: Path) -> str:
    """The text of a document without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a document, as git hosts make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(path: Path) -> Iterator[list[str]]:
    """The cells of every table row of a document."""
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        found = path.parent / target if target else path
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_paths_of_the_checkout_exist(path: Path) -> None:
    for quoted in re.findall(r"`([^`\n]+)`", prose(path)):
        word = quoted.split()[0].partition("::")[0]
        if re.search(r"[<>*…]|NAME|/x_|test_x|NNNN", word) or word.startswith(("/", "-", "~")):
            continue
        if word.endswith(".py") or word.startswith(("scripts/", "tests/", "docs/", "dmthin/", "vagrant/")):
            is_module = any(module.endswith(f"/{word}") for module in MODULES)
            assert is_module or (CHECKOUT / word).exists(), f"{word} does not exist"


def test_the_index_names_every_document() -> None:
    index = CHECKOUT / "docs/index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)]+)\)", prose(index))}
    assert {path.resolve() for path in DOCUMENTS} - linked == {index}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_decision_record_has_its_form(path: Path) -> None:
    title, empty, date, status, *_ = path.read_text().splitlines()
    assert re.fullmatch(rf"# {int(path.name[:4])}\. .*[^.]", title)
    assert empty == ""
    assert re.fullmatch(r"Date: 20[0-9]{2}-[0-9]{2}-[0-9]{2}", date)
    assert re.fullmatch(r"Status: (proposed|accepted|superseded by [0-9]+)", status)
    found = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
    assert [section for section in SECTIONS if section in found] == found
    assert {"Context", "Decision", "Evidence", "Consequences"} <= set(found)


def test_numbers_of_decision_records_are_their_own() -> None:
    numbers = [path.name[:4] for path in RECORDS]
    assert len(set(numbers)) == len(numbers)


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(
        re.fullmatch(r"\[[0-9]+\.[0-9]+\.[0-9]+\] - 20[0-9]{2}-[0-9]{2}-[0-9]{2}", text) for text in headings[1:]
    )
    assert headings[1].startswith(f"[{dmthin.__version__}]")


def test_the_readme_names_every_storage_option() -> None:
    cells = ", ".join(row[0] for row in rows(CHECKOUT / "README.md")).split(", ")
    assert set(KNOWN) | {"size"} <= set(cells)


def test_the_python_page_names_what_is_public() -> None:
    page = prose(CHECKOUT / "docs/python.md")
    for name in dmthin.__all__:
        assert getattr(dmthin, name) is not None
        assert f"`{name}`" in page, name


def test_the_python_page_has_every_error_with_its_status() -> None:
    known = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DmthinError)
    }
    table = {row[0].strip("`"): row[2:] for row in rows(CHECKOUT / "docs/python.md") if len(row) == 6}
    for name, kind in known.items():
        assert name in dmthin.__all__
        if kind is not DmthinError:
            status = kind.status
            assert table[name] == [status.name, str(status.exit_code), status.grpc, str(status.http)]


def test_the_help_names_every_exit_status() -> None:
    text = commands.build().format_help()
    codes = {
        int(code) for code in re.findall(r"(?:^|  )(1?[0-9]) [a-z]", text[text.index("exit status:") :], re.MULTILINE)
    }
    assert codes == {0, *(status.exit_code for status in errors.Status)}
