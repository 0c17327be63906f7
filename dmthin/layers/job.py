"""The interface between a daemon and `dmthin.layers.worker`: the job on its command line and its report."""

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
from dmthin.layers.idmap import IdRanges

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
_INHERITED_VARIABLES = ("DMTHIN_FAILPOINT",)


class Verb(StrEnum):
    """What a worker does with a layer's tree."""

    APPLY = "apply"
    """Unpack the layer from standard input over the tree. The size is the sum of its entries' sizes in bytes."""

    DIFF = "diff"
    """Write the changes from the parent as a tar to standard output. The size is that of the tar in bytes."""

    CHANGES = "changes"
    """Write the changed paths as dockerd's JSON to standard output. The size is their number."""

    SIZE = "size"
    """Compute the size of the changes in bytes, as dockerd's DiffSize counts it."""

    VERIFY = "verify"
    """Compare the tree with the layer's tar on standard input; write the findings as JSON. The size is their number."""

    VERIFY_RECORD = "verify-record"
    """Do the same with dockerd's record of the layer's tar, tar-split, on standard input."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a worker: argv(report), started with environment() and with the descriptors(report) inherited.

    `root` and `parent` are descriptors of the roots of two trees, preferably of detached mounts (open_tree(2) with
    OPEN_TREE_CLONE), which have no parent directory. Without `parent`, the whole tree is the layer. `report` is the
    write end of a pipe; the worker writes less than 16 KiB to it, for `parse_report`. `name` identifies the layer in
    messages. The tree may change during a diff; apply needs exclusive access to it.

    `digest` asks for the size and the SHA-256 of the uncompressed tar, see `parse_tar`. A diff is compressed as
    `compression` says: "gzip", "zstd" or not at all. Its whiteouts have the time `whiteout_ns`, by default the current
    one, and no entry is newer than `newest_ns`; both in nanoseconds since the epoch.

    The exit status is 0 for success, and 1 with an error in the report; the standard output is incomplete then. Apply
    reads its standard input to the end even after an error. At most 100 warnings are written to standard error. The
    worker is killed when the thread that started it ends.
    """

    verb: Verb
    root: int
    name: str
    parent: int | None = None
    uid_map: IdRanges = ()
    gid_map: IdRanges = ()
    max_entries: int | None = None
    compression: str = ""
    digest: bool = False
    whiteout_ns: int | None = None
    newest_ns: int | None = None

    def descriptors(self, report: int) -> tuple[int, ...]:
        """Return the descriptors that the worker must inherit besides standard input, output and error."""
        return tuple(fd for fd in (self.root, self.parent, report) if fd is not None)

    def argv(self, report: int) -> list[str]:
        """Return the command line of the worker, with absolute paths."""
        text = json.dumps({**asdict(self), "report": report})
        return [sys.executable, "-P", "-s", "-S", "-m", "dmthin.layers.worker", text]

    @staticmethod
    def environment() -> dict[str, str]:
        """Return the whole environment of the worker.

        The worker runs without Python's site module, whose import may take longer than the rest of its start, so
        PYTHONPATH must include the directory of zstandard, the one library that it may need.
        """
        folders = [os.path.dirname(os.path.dirname(os.path.abspath(dmthin.__file__)))]  # noqa: PTH100, PTH120
        library = find_spec("zstandard")
        if library is not None and library.origin:
            folders.append(os.path.dirname(os.path.dirname(library.origin)))  # noqa: PTH120
        inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        return {"PYTHONPATH": ":".join(dict.fromkeys(folders)), "LC_ALL": "C.UTF-8", **inherited}


def parse_job(text: str) -> tuple[Job, int]:
    """Return the job and the report's descriptor from the last argument of `argv`. Raise InvalidValue."""
    try:
        found: dict[str, Any] = json.loads(text)
        report = int(found.pop("report"))
        found["verb"] = Verb(found["verb"])
        for key in ("uid_map", "gid_map"):
            ranges = found.get(key) or ()
            found[key] = tuple((int(inside), int(outside), int(size)) for inside, outside, size in ranges)
        return Job(**found), report
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidValue(f"invalid worker job: {error}") from None


@dataclass(frozen=True, slots=True)
class TarDigest:
    """The size in bytes and the digest (`sha256:...`) of an uncompressed tar."""

    size: int
    digest: str


def parse_report(report: bytes) -> int:
    """Return the size in a worker's complete report, or raise the error in it.

    Raise KernelError if the worker ended without a report, most likely killed.
    """
    return int(_successful(report)["size"])


def parse_tar(report: bytes) -> TarDigest:
    """Return the tar in the report of a job with `digest`. Raise what `parse_report` raises."""
    tar = _successful(report)["tar"]
    return TarDigest(int(tar["size"]), str(tar["digest"]))


def _successful(report: bytes) -> dict[str, Any]:
    """Return the content of a report without an error. Raise what `parse_report` raises."""
    try:
        found: dict[str, Any] = json.loads(report)
        if "size" in found:
            return found
        error = found["error"]
        kind = _ERRORS.get(Status[error["status"]], KernelError)
        message, hint = str(error["message"]), str(error["hint"])
    except (ValueError, TypeError, KeyError):
        raise KernelError("the worker of a layer died without a report", hint="check the kernel log: dmesg") from None
    raise kind(message, hint=hint)
