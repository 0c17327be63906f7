"""What a command gets: its options and arguments, where to speak, and the store."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmthin.cli.global_options import GlobalOptions
from dmthin.cli.output import Output
from dmthin.errors import InvalidValue, UserError

if TYPE_CHECKING:
    from dmthin.store.store import Store


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one command."""

    options: GlobalOptions
    arguments: Namespace
    output: Output

    @contextmanager
    def store(self) -> "Iterator[Store]":
        """The store, open. Raises NotFound and whatever else stands in the way."""
        from dmthin.store.store import Store

        with Store(self.options.root, self.options.store_options) as store:
            yield store

    def volume_size(self) -> int | None:
        """The bytes of --storage-opt size=, None where it is not given."""
        from dmthin.store.config.options import parse_volume_size

        return parse_volume_size(self.options.volume_options)

    def confirm(self, what_goes: Iterable[str], question: str, *, accepted: Iterable[str]) -> None:
        """Show what will be lost and have it confirmed, on a terminal or by --yes.

        Raises InvalidValue where nobody can be asked, UserError for another answer than those `accepted`.
        """
        if self.options.yes:
            return
        if sys.stdin is None or not sys.stdin.isatty() or self.output.as_json:
            raise InvalidValue(f"this needs a confirmation: {'; '.join(what_goes)}", hint="give --yes to go on")
        for line in what_goes:
            self.output.raw_words(f"{line}\n")
        self.output.raw_words(f"{question} ")
        if sys.stdin.readline().strip() not in set(accepted):
            raise UserError("not confirmed, nothing was changed")
