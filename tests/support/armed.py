"""dmthin as it is, but that a test lets it die in a call of its choice: `python -m ... FILE WORD...`.

A line `CALL N` in FILE is the order to die at the Nth edge that is passed within such calls; it is removed as it is
carried out. CALL is a method of containerd's service, or `BackgroundQueue` for the work of that. FILE.edges gets a
line for each edge passed, with the call that it was passed in.
"""

import sys
from pathlib import Path
from types import FrameType

from dmthin import steps
from dmthin.cli import main

_FRONT_END = "dmthin.containerd.server"
_BEHIND = "dmthin.store.volumes.background"


class Executioner:
    """Hears of each edge, and arms the failpoint for the one that was ordered."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._passed = 0

    def __call__(self, edge: str) -> None:
        call = _call(sys._getframe())
        with self._orders.with_suffix(".edges").open("a") as edges:
            edges.write(f"{call} {edge}\n")
        try:
            wanted, number = self._orders.read_text().split()
        except FileNotFoundError:
            return
        if call == wanted:
            self._passed += 1
            if self._passed == int(number):
                self._orders.unlink()
                steps.arm(1)


def _call(frame: FrameType | None) -> str:
    """The call that the calling thread is in."""
    while frame is not None:
        module, name = frame.f_globals.get("__name__"), frame.f_code.co_name
        if module == _FRONT_END and name.startswith("_") and name != "_call":
            return name.strip("_").capitalize()
        if module == _BEHIND:
            return "BackgroundQueue"
        frame = frame.f_back
    return "Start"


if __name__ == "__main__":
    steps.arm(0, Executioner(Path(sys.argv.pop(1))))
    sys.exit(main())
