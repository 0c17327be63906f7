"""One job on a layer's tree in a sandboxed process, because layers come from untrusted sources.

`python -m dmthin.layers.worker JOB`; see `dmthin.layers.job` for JOB. A malicious layer that takes over this process
can reach the two trees, three pipes and some CPU time, and nothing else of the host.
"""

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, replace

from dmthin import steps
from dmthin.errors import DmthinError, InvalidValue, Status
from dmthin.kernel import namespace, priority
from dmthin.layers.compare import TreeComparer
from dmthin.layers.digest import DigestStream, LayerOutput
from dmthin.layers.entry import shown
from dmthin.layers.header import NANOSECONDS
from dmthin.layers.idmap import IdMap, Owners, Unmapped
from dmthin.layers.job import Job, Verb, parse_job
from dmthin.layers.stream import CHUNK, ByteStream, RawInput
from dmthin.layers.tar import TarReader
from dmthin.layers.tarwriter import FdWriter, TarWriter
from dmthin.layers.unpacker import Unpacker
from dmthin.os_errors import TREE_READ, explain

_WARNINGS = 100
_KILLED = 137
_LONGEST = 1000
"""Limit in characters of a message and of a hint, each at most six bytes in JSON: a report fits into a pipe's buffer.
"""


class _LimitedHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic to mypy only
    """A log handler that drops all but the first records, so that a malicious layer cannot fill the log."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._left = _WARNINGS

    def emit(self, record: logging.LogRecord) -> None:
        if self._left > 0:
            super().emit(record)
        self._left -= 1


@dataclass(frozen=True, slots=True)
class _Stdin:
    """Unbuffered standard input."""

    def read(self, size: int, /) -> bytes:
        return os.read(0, size)

    def fileno(self) -> int:
        return 0

    def tell(self) -> int:
        return os.lseek(0, 0, os.SEEK_CUR)


def main(arguments: list[str]) -> int:
    """Carry out the job and write its report. Return the exit status."""
    if len(arguments) != 1:
        sys.exit("usage: python -m dmthin.layers.worker JOB")
    try:
        job, report = parse_job(arguments[0])
    except InvalidValue as error:
        sys.exit(str(error))
    priority.reset_priority()  # the daemon, from which this process inherits, runs at a raised priority
    answer: dict[str, object]
    try:
        answer = _run(job, report)
    except Exception as error:
        answer = {"error": _error_report(job, error)}
    if job.verb is Verb.APPLY:
        _drain_stdin()
    text = json.dumps(answer).encode()
    while text:
        text = text[os.write(report, text) :]
    return 0 if "size" in answer else 1


def _run(job: Job, report: int) -> dict[str, object]:
    """Carry out the job and return its report."""
    namespace.die_with_parent()
    logging.getLogger().addHandler(_LimitedHandler())
    logging.getLogger().setLevel(logging.WARNING)
    _preload(job.verb)
    stream = (DigestStream if job.digest else ByteStream)(RawInput(_Stdin(), job.name))
    output = LayerOutput(FdWriter(1), job.compression, digest=job.digest)
    if job.verb in (Verb.APPLY, Verb.VERIFY, Verb.VERIFY_RECORD):
        stream.prepare()
    namespace.confine(job.descriptors(report))
    _arm_failpoint()
    match job.verb:
        case Verb.APPLY:
            return {"size": _apply(job, stream), **_tar(stream)}
        case Verb.DIFF:
            return {"size": _diff(job, output), **_tar(output)}
        case Verb.CHANGES:
            return {"size": _changes(job)}
        case Verb.VERIFY | Verb.VERIFY_RECORD:
            return {"size": _verify(job, stream)}
        case Verb.SIZE:
            return {"size": sum(change.size for change in _comparer(job, read=False))}


def _tar(tar: ByteStream | LayerOutput) -> dict[str, object]:
    """Return the part of the report on a tar that was read or written to its end, if its digest was computed."""
    if isinstance(tar, DigestStream):
        digest = _whole(tar)
        return {"tar": {"size": tar.offset, "digest": digest}}
    if isinstance(tar, LayerOutput) and tar.digest:
        return {"tar": {"size": tar.written, "digest": tar.digest}}
    return {}


def _whole(stream: DigestStream) -> str:
    """Read a tar to its end, and return its digest."""
    while stream.some(CHUNK):
        pass
    return stream.digest


def _preload(verb: Verb) -> None:
    """Make Python import what it imports on first use, such as codecs: no file can be opened in the sandbox."""
    if verb in (Verb.VERIFY, Verb.VERIFY_RECORD):
        import dmthin.layers.tar_split  # noqa: F401
    shown(b"\x01\xff")
    "\udcff".encode("utf-8", "surrogateescape").decode("ascii", "replace")
    json.dumps({"error": "\x01\udcff"})


def _arm_failpoint() -> None:
    """Let DMTHIN_FAILPOINT end this process by exit(2): the init of a pid namespace cannot kill itself by a signal."""
    left = int(os.environ.get("DMTHIN_FAILPOINT", "0"))

    def passed(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(_KILLED)

    steps.arm(0, passed if left else None)


def _owners(job: Job) -> Owners:
    return Owners(IdMap(job.uid_map), IdMap(job.gid_map))


def _apply(job: Job, stream: ByteStream) -> int:
    with Unpacker(job.root, source=job.name, max_entries=job.max_entries, layer=True, owners=_owners(job)) as unpacker:
        for entry, data in TarReader(stream, job.name, layer=True):
            with steps.step("apply", shown(entry.path)):
                unpacker.apply(entry, data)
        return unpacker.bytes


def _comparer(job: Job, *, read: bool) -> TreeComparer:
    return TreeComparer(job.root, job.parent, job.name, read=read)


def _diff(job: Job, output: LayerOutput) -> int:
    """Write the changes as a tar, and return its size. Raise InvalidValue for an owner that is not in the id map."""
    owners = _owners(job)
    writer = TarWriter(output)
    removed = time.time_ns() // NANOSECONDS * NANOSECONDS if job.whiteout_ns is None else job.whiteout_ns
    for change in _comparer(job, read=True):
        if change.entry is None:
            writer.remove(change.path, removed)
            continue
        try:
            entry = owners.to_container(change.entry)
        except Unmapped as error:
            raise InvalidValue(f"{job.name}: {error}") from None
        if job.newest_ns is not None and entry.mtime_ns > job.newest_ns:
            entry = replace(entry, mtime_ns=job.newest_ns)
        writer.add(entry, change.data)
    writer.end()
    output.close()
    return output.written


def _changes(job: Job) -> int:
    output = FdWriter(1)
    output.write(b'{"Changes":[')
    count = 0
    for count, change in enumerate(_comparer(job, read=False), 1):
        path = json.dumps("/" + change.path.decode("utf-8", "replace"))
        output.write(b'%b{"Path":%b,"Kind":%d}' % (b"," if count > 1 else b"", path.encode(), change.kind))
    output.write(b"]}\n")
    output.flush()
    return count


def _verify(job: Job, stream: ByteStream) -> int:
    """Write the differences between the tree and its tar, or the record of it, and return their number."""
    from dmthin.layers.tar_split import verify_record
    from dmthin.layers.verify import verify_tar

    try:
        if job.verb is Verb.VERIFY:
            findings = verify_tar(job.root, TarReader(stream, job.name, layer=True))
            if isinstance(stream, DigestStream):
                findings.digest = _whole(stream)
        else:
            findings = verify_record(job.root, stream, job.name)
    except OSError as error:
        raise explain(error.errno or 0, f"{job.name}: cannot read its tree", TREE_READ) from error
    output = FdWriter(1)
    output.write(json.dumps(asdict(findings)).encode())
    output.flush()
    return len(findings.missing) + len(findings.changed) + len(findings.stale)


def _drain_stdin() -> None:
    """Read the rest of the input: dockerd's sender would block forever without a reader."""
    try:
        while os.read(0, CHUNK):
            pass
    except OSError:
        pass


def _error_report(job: Job, error: Exception) -> dict[str, str]:
    if isinstance(error, DmthinError):
        return {
            "status": error.status.name,
            "message": error.message[:_LONGEST],
            "hint": error.hint[:_LONGEST],
        }
    if isinstance(error, MemoryError):
        text = f"{job.name} needs more than {namespace.MEMORY} bytes of memory"
    else:
        text = f"{job.name}: unexpected {type(error).__name__}: {error}"
    return {"status": Status.FAILED.name, "message": text[:_LONGEST], "hint": ""}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # skips the interpreter's finalization, a tenth of the worker's run time
