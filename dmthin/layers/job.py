"""What a worker is told and what it answers: the daemon's side of `dmthin.layers.worker`."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

import dmthin
from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    NeedsRepair,
    NoDataSpace,
    NoMetadataSpace,
    NotFound,
    NotPermitted,
    Status,
    TimeLimit,
    Unavailable,
)

_ERRORS: dict[Status, type[DmthinError]] = {
    error.status: error
    for error in (
        KernelError,
        InvalidValue,
        NotFound,
        AlreadyExists,
        InUse,
        NoDataSpace,
        NoMetadataSpace,
        NotPermitted,
        Unavailable,
        NeedsRepair,
        TimeLimit,
    )
}
_PASSED_ON = ("DMTHIN_FAILPOINT",)

Ranges = tuple[tuple[int, int, int], ...]
"""(id in the container, id on the host, how many) of a user namespace's map."""


class Verb(StrEnum):
    """What a worker does with a layer's tree."""

    APPLY = "apply"
    """Unpack the layer that comes on standard input over the tree. The size is the sum of its entries' sizes."""

    DIFF = "diff"
    """Write what differs from the parent as a tar to standard output. The size is the tar's."""

    CHANGES = "changes"
    """Write the names that differ as dockerd's JSON to standard output. The size is how many there are."""

    SIZE = "size"
    """Find the size of what differs, as dockerd's DiffSize counts it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a worker: argv(report), started with environment() and with the descriptors(report) inherited.

    `root` and `parent` are descriptors of the two trees' roots, best of detached mounts (open_tree(2) with
    OPEN_TREE_CLONE), above which there is nothing; without a parent all of the tree is the layer. `report` is the
    writing end of a pipe; what comes out of it is for `parse_report`, and it is less than 16 KiB. `name` is what
    messages call the layer. The tree of a diff may change meanwhile; one that is applied to is nobody else's.

    The exit status is 0 if all went well, 1 with an error in the report; whatever was written to standard output
    by then is not whole. `apply` reads its input to the end in any case. Warnings go to standard error, 100 lines
    at most. The worker dies with the thread that started it.
    """

    verb: Verb
    root: int
    name: str
    parent: int | None = None
    uid_map: Ranges = ()
    gid_map: Ranges = ()
    max_entries: int | None = None

    def descriptors(self, report: int) -> tuple[int, ...]:
        """What the worker must inherit beside its standard input, output and error."""
        return tuple(fd for fd in (self.root, self.parent, report) if fd is not None)

    def argv(self, report: int) -> list[str]:
        """The command, by absolute path."""
        text = json.dumps({**asdict(self), "report": report})
        return [sys.executable, "-P", "-s", "-S", "-m", "dmthin.layers.worker", text]

    @staticmethod
    def environment() -> dict[str, str]:
        """All variables that the worker is to have.

        It starts without Python's site module, which may take longer than all the rest, so it is told where the one
        library is that it may need.
        """
        folders = [os.path.dirname(os.path.dirname(os.path.abspath(dmthin.__file__)))]  # noqa: PTH100, PTH120
        library = find_spec("zstandard")
        if library is not None and library.origin:
            folders.append(os.path.dirname(os.path.dirname(library.origin)))  # noqa: PTH120
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {"PYTHONPATH": ":".join(dict.fromkeys(folders)), "LC_ALL": "C.UTF-8", **passed_on}


def parse_job(text: str) -> tuple[Job, int]:
    """The job and the descriptor of its report in the last word of `argv`. Raises InvalidValue."""
    try:
        found: dict[str, Any] = json.loads(text)
        report = int(found.pop("report"))
        found["verb"] = Verb(found["verb"])
        for key in ("uid_map", "gid_map"):
            ranges = found.get(key) or ()
            found[key] = tuple((int(inside), int(outside), int(size)) for inside, outside, size in ranges)
        return Job(**found), report
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidValue(f"this is no job for a worker: {error}") from None


def parse_report(report: bytes) -> int:
    """The size in a worker's whole report; raises the error that is in it.

    KernelError: the worker ended without a report, killed most likely.
    """
    try:
        found: dict[str, Any] = json.loads(report)
        if "size" in found:
            return int(found["size"])
        error = found["error"]
        kind = _ERRORS.get(Status[error["status"]], KernelError)
        message, hint = str(error["message"]), str(error["hint"])
    except (ValueError, TypeError, KeyError):
        raise KernelError(
            "the worker for a layer died without a report", hint="the kernel log may say why: dmesg"
        ) from None
    raise kind(message, hint=hint)
