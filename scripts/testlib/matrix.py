"""The tier matrix: the systems, what runs in each, and docs/engines.md, which it writes."""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from testlib.running import LEFT_FILES, Step
from testlib.selection import CHECKOUT
from vmlib.request import OUT_IN_GUEST

SYSTEMS = ("trixie", "sid", "bookworm")
"""Debian releases. The last is this machine's own, with engines that `scripts/setup --engines` has unpacked."""

PAGE = CHECKOUT / "docs/engines.md"

_OWN = "bookworm"
_TITLES = {"bookworm": "Debian 12 (bookworm)", "trixie": "Debian 13 (trixie)", "sid": "Debian unstable (sid)"}
_KERNEL_MODULES = ("test_devicemapper", "test_thinpool", "test_store", "test_layers_as_root")
"""What of the kernel tier runs on another release's kernel: the rest depends less on that."""

_RESULTS, _JUNIT, _CELLS = LEFT_FILES


def setup_words(system: str) -> list[str]:
    """The words of scripts/setup for what a system takes."""
    return [] if system == _OWN else ["--system", system]


def steps(system: str, words: Sequence[str], host_words: Sequence[str], guest: Sequence[str]) -> Iterator[Step]:
    """The contract of the engines, with words for pytest; and on another release's kernel a part of the kernel tier.

    `host_words` are for what boots guests of the system by itself.
    """
    boot = () if system == _OWN else ("--system", system)
    if words:
        yield Step(system, words, (*boot, *guest))
    if host_words:
        yield Step(f"{system}-systemd", [*host_words, f"--system={system}"])
    if boot and words:
        modules = [f"tests/kernel/{name}.py" for name in _KERNEL_MODULES]
        yield Step(f"{system}-kernel", [*modules, f"--junitxml={OUT_IN_GUEST}/{_JUNIT}"], boot)


def write(left: Mapping[tuple[str, str], str], command: str) -> None:
    """Put what a run has left into the page, below the headings of its systems; all else stays as it is."""
    page = PAGE.read_text()
    for (system, name), text in left.items():
        if name == _RESULTS:
            results = json.loads(text)
            results["cells"] |= json.loads(left.get((f"{system}-systemd", _CELLS), "{}"))
            part = section(results, left.get((f"{system}-kernel", _JUNIT)), command, datetime.date.today())
            page = replaced(page, system, part)
    PAGE.write_text(page)


def replaced(page: str, system: str, part: str) -> str:
    """The page with another part for a system, between the marks of that. Raises ValueError if there are none."""
    begin, end = f"<!-- {system}: written by scripts/test -->\n", f"<!-- end of {system} -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{PAGE} has no place for {system}")
    return page[: page.index(begin) + len(begin)] + part + page[page.index(end) :]


def section(results: Mapping[str, Any], junit: str | None, command: str, day: datetime.date) -> str:
    """What the page says of a system: the day, the command, the versions, and a row for each test of the contract."""
    cells: Mapping[str, Mapping[str, str]] = results["cells"]
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        *(f"### {_TITLES[results['system']]}", "", f"Run on {day.isoformat()} by `{command}`: {versions}.", ""),
        *("| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)),
        *(
            "| " + " | ".join([row, *(found.get(column, "") for column in columns)]) + " |"
            for row, found in cells.items()
        ),
    ]
    if junit is not None:
        lines += ["", f"Of the kernel tier, on this kernel: {_counted(junit)}"]
    return "\n".join(lines) + "\n"


def _counted(junit: str) -> str:
    """How many tests of each module passed, and which did not."""
    passed: dict[str, int] = {}
    failed: list[str] = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        module = re.sub(r".*\.", "", case.get("classname", ""))
        passed.setdefault(module, 0)
        if case.find("failure") is None and case.find("error") is None:
            passed[module] += 1
        else:
            failed.append(f"`{case.get('name')}`")
    counts = ", ".join(f"`tests/kernel/{module}.py` {count}" for module, count in passed.items())
    return f"{counts} passed; " + (f"failed: {', '.join(failed)}." if failed else "none failed.")
