"""A processor of the host for each guest that is a program."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_processor() -> Iterator[int]:
    """The number of a processor that no other guest has meanwhile; one that others have where each is taken.

    User-mode-linux hands every system call and page fault from one process to another and back. On two processors
    that means to wake an idle one each time: a fork takes 120 ms then, and 40 ms where both stay on one.
    """
    processors = sorted(os.sched_getaffinity(0), reverse=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        shared = processors[os.getpid() % len(processors)]
        yield next((number for number in processors if _claimed(claim, number)), shared)


def _claimed(claim: socket.socket, number: int) -> bool:
    """Whether the processor is ours now. An abstract name leaves no file, and is free again when we die."""
    try:
        claim.bind(f"\0dmthin-vm/processor-{number}")
    except OSError:
        return False
    return True
