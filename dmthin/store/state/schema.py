"""The ledger's database file: its schema, its migrations, and the errors of SQLite.

The database uses a write-ahead log with `synchronous=NORMAL`: a commit appends to the log, and `GroupSync` syncs that,
once for many commits. SQLite itself syncs the log before a checkpoint, and the database after it. So a power cut takes
away whole commits from the end of the log, and none that was synced.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from dmthin.errors import DmthinError, KernelError, NoDataSpace, NotFound, NotPermitted, TimeLimit, Unavailable
from dmthin.kernel import block
from dmthin.os_errors import RUN_AS_ROOT
from dmthin.steps import step

_APPLICATION_ID = 0x646D746E  # "dmtn"
_BUSY_SECONDS = 30.0

_MIGRATIONS = (
    """
    CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        uuid TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('making', 'ready', 'destroying')),
        block_size INTEGER NOT NULL,
        data TEXT NOT NULL,
        metadata TEXT NOT NULL,
        pool TEXT NOT NULL,
        options TEXT NOT NULL,
        generation INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        data_size INTEGER NOT NULL,
        data_target INTEGER,
        metadata_target INTEGER,
        next_device_id INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE volume (
        device_id INTEGER PRIMARY KEY CHECK (device_id BETWEEN 0 AND 16777215),
        name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('base', 'image', 'container')),
        state TEXT NOT NULL CHECK (state IN ('making', 'ready', 'growing', 'removing')),
        size INTEGER NOT NULL CHECK (size > 0),
        file_system TEXT NOT NULL,
        parent INTEGER REFERENCES volume (device_id),
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX volume_by_parent ON volume (parent);
    CREATE INDEX volume_under_way ON volume (device_id) WHERE state <> 'ready';
    """,
    "ALTER TABLE volume ADD COLUMN uses INTEGER NOT NULL DEFAULT 0 CHECK (uses >= 0)",
    """
    ALTER TABLE store ADD COLUMN metadata_size INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE store ADD COLUMN border INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE volume ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE snapshot (
        device_id INTEGER PRIMARY KEY REFERENCES volume (device_id) ON DELETE CASCADE,
        snapshotter TEXT NOT NULL,
        key TEXT NOT NULL,
        parent TEXT NOT NULL,
        labels TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        source TEXT NOT NULL,
        bytes INTEGER,
        inodes INTEGER,
        UNIQUE (snapshotter, key)
    ) STRICT;
    """,
)
"""Each script migrates the schema by one version; a ledger's `user_version` is the number of those applied."""

SCHEMA_VERSION = len(_MIGRATIONS)


def make(path: Path) -> None:
    """Make an empty ledger, durably: under another name first, then renamed. Raises what `failure` returns."""
    new = path.with_name(f"{path.name}.new")
    for stale in (*files(path)[1:], *files(new)):
        block.remove_file(stale)
    try:
        with step("fill", new), closing(connect(new)) as connection:
            new.chmod(0o600)
            # The file keeps its journal mode. It is set here since opening must not change a file that is no ledger.
            connection.execute("PRAGMA journal_mode = WAL")
            _upgrade(connection)
        with step("make", path):
            new.rename(path)
            block.sync_folder(path.parent)
    except sqlite3.Error as error:
        raise failure(error, path) from None


def clear_blank(path: Path) -> None:
    """Remove a database without any table; leave any other as it is."""
    try:
        with closing(connect(path)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
    except (sqlite3.Error, DmthinError):
        return
    if not tables and not application:
        for file in files(path):
            block.remove_file(file)


def require_current(connection: sqlite3.Connection, path: Path) -> None:
    """Migrate a ledger to this schema. Raises NotFound (not a ledger), Unavailable (a newer schema)."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise NotFound(f"{path} is not a ledger of dmthin", hint="choose another --root")
    if version > SCHEMA_VERSION:
        raise Unavailable(
            f"{path.parent} was made by a newer dmthin (schema {version}, this one knows {SCHEMA_VERSION})",
            hint="upgrade dmthin",
        )
    connection.execute("PRAGMA journal_mode = WAL")  # a copy made by VACUUM INTO or a dump has lost it
    if version < SCHEMA_VERSION:
        _upgrade(connection)


def files(path: Path) -> tuple[Path, ...]:
    """Return the ledger's file and those that SQLite keeps beside it."""
    return path, log(path), path.with_name(f"{path.name}-shm")


def log(path: Path) -> Path:
    """Return the path of the write-ahead log, which exists while a connection has read or written."""
    return path.with_name(f"{path.name}-wal")


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection whose commits are durable once the log is synced. Raises what `failure` returns."""
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        raise failure(error, path) from None
    return connection


def _upgrade(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for script in _MIGRATIONS[version:]:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def failure(error: sqlite3.Error, path: Path) -> DmthinError:
    """Return the error for an error of SQLite."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return NoDataSpace(f"the file system of {path} is full", hint="free some space on it")
    if name.startswith("SQLITE_BUSY"):
        return TimeLimit(f"the ledger {path} was in use for more than {_BUSY_SECONDS:g} s", hint="try again")
    if name == "SQLITE_CANTOPEN" and not os.access(path, os.R_OK | os.W_OK):
        return NotPermitted(f"the ledger {path} cannot be opened", hint=RUN_AS_ROOT)
    if name == "SQLITE_NOTADB":
        return NotFound(f"{path} is not a ledger of dmthin", hint="choose another --root")
    return KernelError(f"the ledger {path}: {error}")
