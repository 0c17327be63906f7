"""The names of the files of a store, and what is wrong with a folder that lacks some of them."""

from pathlib import Path

from dmthin.errors import DmthinError, NeedsRepair, NotFound

LEDGER_FILE = "ledger.db"
LOCK_FILE = "lock"
DATA_FILE = "data"
METADATA_FILE = "metadata"


def missing(root: Path, name: str) -> DmthinError:
    """Return the error for a ledger or a lock file that is not in a folder.

    A store that is removed loses its pool's files first, then the ledger, then the lock file. Where one that comes
    later is there still, the missing file was lost.
    """
    if name == LOCK_FILE and (root / LEDGER_FILE).exists():
        return NeedsRepair(f"the lock file {root / LOCK_FILE} is missing", hint=f"make it: touch {root / LOCK_FILE}")
    pool_files = [file for file in (DATA_FILE, METADATA_FILE) if (root / file).is_file()]
    if name == LEDGER_FILE and pool_files and (root / LOCK_FILE).is_file():
        return NeedsRepair(
            f"the ledger {root / LEDGER_FILE} is missing, though the pool's {' and '.join(pool_files)} are there",
            hint="restore it from a backup, or remove these files if nothing in them is needed",
        )
    return NotFound(f"{root} is not a store", hint="make one with: dmthin pool create")
