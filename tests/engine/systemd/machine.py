"""A guest with systemd as its first process, of a Debian release, and what it says on its console."""

import re
import subprocess
from pathlib import Path

from enginelib.waiting import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[3]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Machine:
    """A guest whose disk keeps dmthin's stores and what is in /etc from one boot to the next."""

    def __init__(self, system: str, folder: Path) -> None:
        self.folder = folder
        self._line = [
            *(str(CHECKOUT / "scripts/vm"), *([] if system == "bookworm" else ["--system", system]), "--systemd"),
            *("--memory", "4G", "--timeout", f"{4 * PATIENCE:g}", "--disk", str(folder / "disk.img")),
            *("--env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'scripts'}", "--out", str(folder)),
        ]

    def run(self, module: str, *words: str) -> list[str]:
        """Boot, run a module of the tests, and shut down; what kernel and systemd have said. It must succeed."""
        console = self.folder / "console.log"
        job = ["--kernel-log", str(console), "--", "python", "-m", module, *words]
        subprocess.run([*self._line, *job], stdin=subprocess.DEVNULL, check=True)
        return _COLOUR.sub("", console.read_text(errors="replace")).splitlines()
