"""Tables like those of lvs: aligned columns with headings, with selectable fields and order."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dmthin.cli.fields import Field, shown
from dmthin.errors import InvalidValue

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """The options of a table. `sort` lists fields, and whether each sorts descending; `chosen`: by -o.

    With `brief`, ids in names have 12 digits.
    """

    columns: tuple[Field[T], ...]
    sort: tuple[tuple[Field[T], bool], ...]
    chosen: bool
    headings: bool
    tabs: bool
    exact: bool
    brief: bool = False

    def sorted(self, rows: Iterable[T]) -> list[T]:
        """Return the rows in the requested order. Unknown values sort as the smallest."""
        ordered = list(rows)
        for field, descending in reversed(self.sort):
            ordered.sort(key=lambda row, field=field: _sort_key(field.get(row)), reverse=descending)  # type: ignore[misc]
        return ordered

    def text(self, rows: Sequence[T], total: Mapping[str, Any] | None = None) -> str:
        """Return the table, ending in a newline unless it is empty. A `total` line is omitted with -H."""
        lines = [[field.text(row, exact=self.exact, brief=self.brief) for field in self.columns] for row in rows]
        if self.tabs:
            return "".join("\t".join(line) + "\n" for line in lines)
        if total and lines:
            lines.append([self._total_cell(field, total) for field in self.columns])
        if self.headings and lines:
            lines.insert(0, [field.heading for field in self.columns])
        return aligned(lines, [field.format.right for field in self.columns])

    def _total_cell(self, field: Field[T], total: Mapping[str, Any]) -> str:
        return shown(total[field.name], field.format, exact=self.exact) if field.name in total else ""


def table_from_arguments(
    arguments: Namespace, fields: tuple[Field[T], ...], default: str, sort: str = "name", *, brief: bool = False
) -> Table[T]:
    """Return the table for the options -o, -O, -H, -p and --noheadings. Raise InvalidValue for an unknown field.

    With `brief`, ids in names have 12 digits, except with -H.
    """
    given: str = arguments.columns or ""
    names = default + "," + given[1:] if given.startswith("+") else given or default
    if not _names(names):
        raise InvalidValue("no fields specified", hint="see: -o help")
    return Table(
        columns=tuple(find(fields, name) for name in dict.fromkeys(_names(names))),
        sort=tuple((find(fields, name.lstrip("+-")), name.startswith("-")) for name in _names(arguments.sort or sort)),
        chosen=bool(given),
        headings=not (arguments.noheadings or arguments.tabs),
        tabs=arguments.tabs,
        exact=arguments.exact,
        brief=brief and not arguments.tabs,
    )


def find(fields: Iterable[Field[T]], name: str) -> Field[T]:
    """Return the field with that name or alias. Raise InvalidValue."""
    known = {}
    for field in fields:
        known[field.name] = field
        if field.alias:
            known[field.alias] = field
    if name in known:
        return known[name]
    import difflib

    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(field.name for field in fields)}"
    raise InvalidValue(f"unknown field {name!r}", hint=hint)


def describe(fields: Iterable[Field[Any]]) -> str:
    """Return the text of -o help."""
    return aligned([[f"{field.name}{f' ({field.alias})' if field.alias else ''}", field.help] for field in fields])


def aligned(lines: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Return lines of cells as text, each column as wide as its widest cell, without trailing blanks."""
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [*right, *[False] * (len(widths) - len(right))]
    text = ""
    for line in lines:
        cells = [
            cell.rjust(width) if side else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _sort_key(value: Any) -> tuple[bool, Any]:
    if value is None or value == ():
        return (False, 0)
    return (True, value)
