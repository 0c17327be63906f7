"""The ledger's SQLite database: connections, transactions and durability."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmthin.errors import DmthinError, TimeLimit
from dmthin.kernel import block
from dmthin.steps import step, traced
from dmthin.store.state import schema
from dmthin.store.state.files import LEDGER_FILE, missing
from dmthin.store.state.group_sync import GroupSync
from dmthin.store.state.rows import Row


class Database:
    """An open ledger file. Each thread has a connection of its own; SQLite allows one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Open the ledger. Raises NotFound where there is none, Unavailable for a newer schema or another file."""
        self.path = path
        self._connections: dict[int, sqlite3.Connection] = {}
        """By thread id. A forked child must not close the connections of other threads: SQLite's internal locks are as
        they were at the fork, and no thread is left to release them. So they are not in a threading.local, whose
        values a fork destroys."""
        self._writing = threading.Lock()
        self._log = GroupSync(schema.log(path))
        if not block.exists(path):
            raise missing(path.parent, LEDGER_FILE)
        try:
            schema.require_current(self._connection, path)
        except sqlite3.Error as error:
            self.close()
            raise schema.failure(error, path) from None
        except DmthinError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of all threads; may be called twice."""
        while self._connections:
            _, connection = self._connections.popitem()
            connection.close()

    def remove(self) -> None:
        """Remove the ledger's files, the database first: without it there is no store. The log is empty by then."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise schema.failure(error, self.path) from None
        self.close()
        for path in schema.files(self.path):
            block.remove_file(path)

    @contextmanager
    def transaction(self, name: str, *, durable: bool = True) -> Iterator[None]:
        """Commit every write of the block, durably, or none. Other writers wait. `name` is for the trace.

        With `durable=False` the commit survives the end of this process but not a power cut, and costs no sync: enough
        for what a power cut ends too, such as mounts. Other connections see the commit before it is synced; one sync
        serves all threads that wait for it. A failed sync raises, although the change is visible.
        """
        connection = self._connection
        try:
            with self._writing:  # threads queue here: SQLite's busy handler would sleep and poll
                if durable and self._log.has_failed:
                    self._rewrite_log()
                with traced("ledger begin", name):
                    connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    with step("ledger commit", name):
                        connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise schema.failure(error, self.path) from None
        if durable:
            with traced("ledger sync", name):
                self._log.wait()

    def sync(self) -> None:
        """Make every commit durable, those too of processes that died before their sync.

        Call it before the pool learns of what was read here: the pool must never be ahead of a ledger that a power cut
        sets back.
        """
        self._log.wait()

    def _rewrite_log(self) -> None:
        """Checkpoint the log into the database: after a failed sync, a later one cannot make the log durable.

        Raises TimeLimit while other connections read the log.
        """
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise TimeLimit(f"the ledger {self.path} could not be written out again", hint="try again")
        self._log.has_failed = False

    def rows(self, query: str, *values: object) -> list[Row]:
        """Return the rows of a query."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise schema.failure(error, self.path) from None

    def execute(self, statement: str, *values: object) -> None:
        """Execute a statement that writes, inside of a transaction."""
        self._connection.execute(statement, values)

    @property
    def _connection(self) -> sqlite3.Connection:
        thread = threading.get_ident()  # a new thread inherits the connection of an ended one with its id
        if (connection := self._connections.get(thread)) is None:
            connection = self._connections[thread] = schema.connect(self.path)
        return connection
