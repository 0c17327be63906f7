"""The kernel's loop module: taken out, and put in again in another way."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmthin.kernel.devnode import LOOP_CONTROL
from tests.support.processes import program

_HELPER = Path("/proc/sys/kernel/modprobe")


def _file() -> str:
    release = os.uname().release
    found = [
        path for place in ("/usr/lib/uml/modules", "/lib/modules") for path in Path(place, release).rglob("loop.ko")
    ]
    return str(found[0])


@contextmanager
def loaded_with(*parameters: str) -> Iterator[None]:
    """Have the module loaded with these parameters during the block; no loop device may be bound then."""
    program("rmmod", "loop")
    program("insmod", _file(), *parameters)
    try:
        yield
    finally:
        program("rmmod", "loop")
        program("insmod", _file())


@contextmanager
def loaded_on_demand(scratch: Path) -> Iterator[None]:
    """Have the module unloaded at the begin of the block; the kernel loads it when it is asked for."""
    helper, before = scratch / "modprobe", _HELPER.read_text()
    helper.write_text(f"#!/bin/sh\nexec insmod {_file()}\n")
    helper.chmod(0o755)
    program("rmmod", "loop")
    _HELPER.write_text(str(helper))
    try:
        yield
    finally:
        _HELPER.write_text(before)
        if Path("/sys/module/loop").exists():
            program("rmmod", "loop")
        Path(LOOP_CONTROL).unlink(missing_ok=True)  # the kernel removes only the node that it has made
        program("insmod", _file())
