"""Commands that a page of the documents shows, as a reader types them: its blocks of the language `console`.

A line that begins with `$ ` is a command; lines of a here-document belong to it. The other lines are what it prints, in
which `...` stands for anything, on a line of its own for any number of lines. A comment in front, such as
`<!-- typed on trixie -->`, says on which system the blocks below it are typed, down to the next such comment; `nowhere`
is for what takes more than the tests have.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOWHERE = "nowhere"

_MARK = re.compile(r"^<!-- typed on (\w+) -->$")
_FENCE = re.compile(r"^( *)```(\w*)$")
_HERE = re.compile(r"<<'?(\w+)'?$")
_ANYTHING = "..."


@dataclass(frozen=True, slots=True)
class Typed:
    """A command, where it stands, and what it prints as far as the page shows it: nothing is for anything."""

    line: int
    command: str
    printed: str
    system: str

    def agrees(self, printed: str) -> bool:
        """Whether this is what the page shows, with any space at the ends of lines and between columns."""
        if not self.printed:
            return True
        pieces: list[str] = []
        for line in self.printed.splitlines():
            words = re.split(r"(\.\.\.|\s+)", line.strip())
            text = "".join(
                r"[^\n]*" if word == _ANYTHING else r"[ \t]+" if word.isspace() else re.escape(word) for word in words
            )
            pieces.append(r"(?:[^\n]*\n)*?" if line.strip() == _ANYTHING else rf"[ \t]*{text}[ \t]*\n")
        return re.fullmatch("".join(pieces), f"{printed.rstrip()}\n") is not None


def commands(page: Path) -> list[Typed]:
    """The commands of a page in their order. Raises ValueError for a block that no mark says the system of."""
    return list(_commands(page.read_text().splitlines()))


def _commands(lines: list[str]) -> Iterator[Typed]:
    system = ""
    language, indent = "", 0
    block: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if found := _MARK.match(line):
            system = found[1]
        elif found := _FENCE.match(line):
            if language or block:
                yield from _typed(block, system)
                language, block = "", []
            elif found[2] == "console":
                if not system:
                    raise ValueError(f"line {number}: no comment in front says where this is typed")
                language, indent = found[2], len(found[1])
        elif language:
            block.append((number, line[indent:]))


def _typed(block: list[tuple[int, str]], system: str) -> Iterator[Typed]:
    """The commands of one block."""
    rest = iter(block)
    number, command, printed = 0, "", []
    for at, line in rest:
        if not line.startswith("$ "):
            printed.append(line)
            continue
        if command:
            yield Typed(number, command, "\n".join(printed), system)
        number, command, printed = at, line[2:], []
        if found := _HERE.search(line):
            for _, more in rest:
                command += f"\n{more}"
                if more == found[1]:
                    break
    if command:
        yield Typed(number, command, "\n".join(printed), system)
