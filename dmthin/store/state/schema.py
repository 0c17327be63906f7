"""The ledger's database file: its schema, its migrations, and the errors of SQLite.

The database uses a write-ahead log with `synchronous=NORMAL`: a commit appends to the log, and `GroupSync` syncs that,
once for many commits. SQLite itself syncs the log before a checkpoint, and the database after it. So a power cut takes
away whole commits from the end of the log, and none that was synced.
"""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace, NotFound, TimeLimit, Unavailable
from dmthin.kernel import block
from dmthin.os_errors import os_failure
from dmthin.steps import step

_APPLICATION_ID = 0x646D746E  # "dmtn"
_BUSY_SECONDS = 30.0
_LONGEST_PATH = 504
"""Bytes of the longest path that SQLite opens on Unix: 512 (MAX_PATHNAME in os_unix.c), less its suffix -journal."""

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
    new = unfinished(path)
    require_short(new)
    for stale in (*files(path)[1:], *files(new)):
        block.remove_file(stale)
    try:
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise os_failure(error, f"make {new}") from None
    try:
        with step("fill", new), closing(connect(new)) as connection:
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


def unfinished(path: Path) -> Path:
    """Return the path at which `make` fills a new ledger."""
    return path.with_name(f"{path.name}.new")


def log(path: Path) -> Path:
    """Return the path of the write-ahead log, which exists while a connection has read or written."""
    return path.with_name(f"{path.name}-wal")


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection whose commits are durable once the log is synced. Raises what `failure` returns."""
    require_short(path)
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        raise failure(error, path) from None
    return connection


def require_short(path: Path) -> None:
    """Raise InvalidValue for the path of a ledger that is too long for SQLite, which names no reason."""
    if (length := len(os.fsencode(path))) > _LONGEST_PATH:
        raise InvalidValue(
            f"the path of the store is too long: its ledger's has {length} bytes, and SQLite takes {_LONGEST_PATH}",
            hint="choose a shorter --root",
        )


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
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return _not_opened(error, path)
    if name == "SQLITE_NOTADB":
        return NotFound(f"{path} is not a ledger of dmthin", hint="choose another --root")
    return KernelError(f"the ledger {path}: {error}")


def _not_opened(error: sqlite3.Error, path: Path) -> DmthinError:
    """Return why a ledger cannot be opened or written, which SQLite does not say.

    The ledger itself is not opened for that: closing it would release the locks that SQLite has on it.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        path.stat()
        for place in (path.parent, *filter(os.path.exists, files(path))):
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if not os.access(place, os.R_OK | os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as reason:
        return os_failure(reason, f"open the ledger {path}")
    return KernelError(f"the ledger {path}: {error}")
