"""Group commit: what many threads have written to one file reaches the disk together."""

import threading
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.kernel import block


class GroupSync:
    """Syncs the file at `path` for as many threads at once as ask for it while another sync is under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = threading.Lock()
        self._next = _Round()
        self.has_failed = False
        """Whether a sync has failed: what it was to write may be lost, whatever a later one says (fsync(2), EIO)."""

    def wait(self) -> None:
        """Return once everything that this thread has written to the file is on the disk.

        Raises what `block.sync_data` does, to each whose write was not synced.
        """
        mine = self._next  # begins later than now, and so after our write
        with self._disk:
            if not mine.is_over:
                self._next = _Round()
                mine.run(self._path)
                self.has_failed = self.has_failed or mine.failure is not None
        if mine.failure is not None:
            raise mine.failure


class _Round:
    """One sync, for those who asked before it began."""

    def __init__(self) -> None:
        self.is_over = False
        self.failure: DmthinError | None = None

    def run(self, path: Path) -> None:
        try:
            block.sync_data(path)
        except DmthinError as error:
            self.failure = error
        self.is_over = True
