"""The context of a command: its options and arguments, its output, and the store."""

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
    """One invocation of a command."""

    options: GlobalOptions
    arguments: Namespace
    output: Output

    @contextmanager
    def store(self) -> "Iterator[Store]":
        """Yield the open store. Raise NotFound, and what else Store raises."""
        from dmthin.store.store import Store

        with Store(self.options.root, self.options.store_options) as store:
            yield store

    def volume_size(self) -> int | None:
        """Return the value of --storage-opt size= in bytes, None without it. Raise InvalidValue."""
        from dmthin.store.config.options import parse_volume_size

        return parse_volume_size(self.options.volume_options)

    def confirm_size(self, store: "Store", name: str, size: int) -> None:
        """Ask for confirmation of a size in bytes that is out of proportion to the pool. Do nothing with --yes.

        Raise what `confirm` raises, and what activation does.
        """
        from dmthin.cli.sizes import OUT_OF_PROPORTION, human

        if self.options.yes or self.options.dry_run:
            return
        if not (data := store.pool.status().data_size):
            store.pool.activate()
            data = store.pool.status().data_size
        if size > OUT_OF_PROPORTION * data:
            loss = f"{name} would have {human(size)}, {size // data} times the {human(data)} of the pool"
            self.confirm([loss], "To continue, type yes:", accepted=("yes",))

    def confirm(self, losses: Iterable[str], question: str, *, accepted: Iterable[str]) -> None:
        """Show what will be lost, and ask for confirmation on the terminal. Do nothing with --yes.

        Raise InvalidValue without a terminal, and UserError for an answer that is not in `accepted`.
        """
        if self.options.yes:
            return
        if sys.stdin is None or not sys.stdin.isatty() or self.output.as_json:
            raise InvalidValue(f"confirmation required: {'; '.join(losses)}", hint="pass --yes to confirm")
        for line in losses:
            self.output.raw_words(f"{line}\n")
        self.output.raw_words(f"{question} ")
        if sys.stdin.readline().strip() not in set(accepted):
            raise UserError("not confirmed, nothing was changed")
