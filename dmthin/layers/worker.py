"""One job on a layer's tree in a process of its own, shut in because layers come from strangers.

`python -m dmthin.layers.worker JOB`, which `dmthin.layers.job` describes. What a hostile layer might make of this
process has the two trees, three pipes and a share of the CPU, and nothing of the host.
"""

import json
import logging
import os
import sys
import time
from dataclasses import dataclass

from dmthin import steps
from dmthin.errors import DmthinError, InvalidValue, Status
from dmthin.kernel import namespace, priority
from dmthin.layers.compare import TreeComparer
from dmthin.layers.entry import shown
from dmthin.layers.header import NANOSECONDS
from dmthin.layers.idmap import IdMap, Owners, Unmapped
from dmthin.layers.job import Job, Verb, parse_job
from dmthin.layers.stream import CHUNK, ByteStream, RawInput
from dmthin.layers.tar import TarReader
from dmthin.layers.tarwriter import Output, TarWriter
from dmthin.layers.unpack import Unpacker

_WARNINGS = 100
_KILLED = 137
_LONGEST = 1000
"""Characters of a message in a report, six bytes each at most: a pipe takes that though nobody reads it yet."""


class _Warnings(logging.StreamHandler):  # type: ignore[type-arg]  # generic to mypy only
    """A log that a hostile layer cannot fill."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._left = _WARNINGS

    def emit(self, record: logging.LogRecord) -> None:
        if self._left > 0:
            super().emit(record)
        self._left -= 1


@dataclass(frozen=True, slots=True)
class _Input:
    """Standard input, with nothing around it."""

    def read(self, size: int, /) -> bytes:
        return os.read(0, size)

    def fileno(self) -> int:
        return 0

    def tell(self) -> int:
        return os.lseek(0, 0, os.SEEK_CUR)


def main(arguments: list[str]) -> int:
    """Do the job; the exit status."""
    if len(arguments) != 1:
        sys.exit("usage: python -m dmthin.layers.worker JOB")
    try:
        job, report = parse_job(arguments[0])
    except InvalidValue as error:
        sys.exit(str(error))
    priority.reset_priority()  # the daemon that has started this process may have raised its own
    answer: dict[str, object]
    try:
        answer = {"size": _run(job, report)}
    except Exception as error:
        answer = {"error": _described(job, error)}
    if job.verb is Verb.APPLY:
        _drain()
    text = json.dumps(answer).encode()
    while text:
        text = text[os.write(report, text) :]
    return 0 if "size" in answer else 1


def _run(job: Job, report: int) -> int:
    namespace.die_with_parent()
    logging.getLogger().addHandler(_Warnings())
    logging.getLogger().setLevel(logging.WARNING)
    _load_all()
    stream = ByteStream(RawInput(_Input(), job.name))
    if job.verb is Verb.APPLY:
        stream.prepare()
    namespace.confine(job.descriptors(report))
    _heed_failpoint()
    match job.verb:
        case Verb.APPLY:
            return _apply(job, stream)
        case Verb.DIFF:
            return _diff(job)
        case Verb.CHANGES:
            return _changes(job)
        case Verb.SIZE:
            return sum(change.size for change in _compared(job, read=False))


def _load_all() -> None:
    """Load what Python otherwise loads when it is first needed, since no file can be opened later."""
    shown(b"\x01\xff")
    "\udcff".encode("utf-8", "surrogateescape").decode("ascii", "replace")
    json.dumps({"error": "\x01\udcff"})


def _heed_failpoint() -> None:
    """Let a test end this process at the Nth step: as the first of its namespace it cannot kill itself."""
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
        for entry, data in TarReader(stream, job.name):
            with steps.step("apply", shown(entry.path)):
                unpacker.apply(entry, data)
        return unpacker.bytes


def _compared(job: Job, *, read: bool) -> TreeComparer:
    return TreeComparer(job.root, job.parent, job.name, read=read)


def _diff(job: Job) -> int:
    owners = _owners(job)
    output = Output(1)
    writer = TarWriter(output)
    now = time.time_ns() // NANOSECONDS * NANOSECONDS
    for change in _compared(job, read=True):
        if change.entry is None:
            writer.remove(change.path, now)
            continue
        try:
            entry = owners.to_container(change.entry)
        except Unmapped as error:
            raise InvalidValue(f"{job.name}: {error}") from None
        writer.add(entry, change.data)
    writer.end()
    output.flush()
    return output.written


def _changes(job: Job) -> int:
    output = Output(1)
    output.write(b'{"Changes":[')
    count = 0
    for count, change in enumerate(_compared(job, read=False), 1):
        path = json.dumps("/" + change.path.decode("utf-8", "replace"))
        output.write(b'%b{"Path":%b,"Kind":%d}' % (b"," if count > 1 else b"", path.encode(), change.kind))
    output.write(b"]}\n")
    output.flush()
    return count


def _drain() -> None:
    """Read what is left of the input, so that dockerd's sender need not wait for a reader for ever."""
    try:
        while os.read(0, CHUNK):
            pass
    except OSError:
        pass


def _described(job: Job, error: Exception) -> dict[str, str]:
    if isinstance(error, DmthinError):
        return {
            "status": error.status.name,
            "message": error.message[:_LONGEST],
            "hint": error.hint[:_LONGEST],
        }
    if isinstance(error, MemoryError):
        words = f"{job.name} needs more than {namespace.MEMORY} bytes of memory"
    else:
        words = f"{job.name}: unexpected {type(error).__name__}: {error}"
    return {"status": Status.FAILED.name, "message": words[:_LONGEST], "hint": ""}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # what Python tidies up on its way out is nothing to us, and takes a tenth of the time
