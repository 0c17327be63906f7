"""Group commit: one fdatasync for all threads that wait for their writes to the same file."""

import threading
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.kernel import block


class GroupSync:
    """Syncs the file at `path` for all threads that ask for it while another sync is in progress."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = threading.Lock()
        self._next = _Round()
        self.has_failed = False
        """Whether a sync has failed: its data may be lost, even if a later sync succeeds (fsync(2), EIO)."""

    def wait(self) -> None:
        """Return once everything that this thread has written to the file is durable.

        Raises what `block.sync_data` does, in each thread whose write was not synced.
        """
        mine = self._next  # begins after now, and so after this thread's write
        with self._disk:
            if not mine.is_over:
                self._next = _Round()
                mine.run(self._path)
                self.has_failed = self.has_failed or mine.failure is not None
        if mine.failure is not None:
            raise mine.failure


class _Round:
    """One sync, for the threads that asked before it began."""

    def __init__(self) -> None:
        self.is_over = False
        self.failure: DmthinError | None = None

    def run(self, path: Path) -> None:
        try:
            block.sync_data(path)
        except DmthinError as error:
            self.failure = error
        self.is_over = True
