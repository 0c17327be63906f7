"""A tree and the tree of its parent, to be compared."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmthin.layers.compare import ChangeKind, TreeChange, TreeComparer

Found = list[tuple[ChangeKind, str]]


class Pair:
    """A layer's tree that began as a copy of its parent's."""

    def __init__(self, scratch: Path) -> None:
        self.old, self.new = scratch / "old", scratch / "new"
        self.old.mkdir()

    def copy(self) -> None:
        shutil.copytree(self.old, self.new, symlinks=True)
        for folder, inner, files in os.walk(self.old):
            for name in [*inner, *files, "."]:
                info = os.lstat(os.path.join(folder, name))
                there = os.path.join(self.new, os.path.relpath(folder, self.old), name)
                os.utime(there, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)

    def compared(self, act: Callable[[TreeChange], None] = lambda change: None, **options: Any) -> list[TreeChange]:
        new, old = os.open(self.new, os.O_PATH), os.open(self.old, os.O_PATH)
        try:
            found = []
            for change in TreeComparer(new, old, "layer", **options):
                found.append(change)
                act(change)
            return found
        finally:
            os.close(new)
            os.close(old)

    def changes(self) -> Found:
        """All changes; asked for by name only, they are the same."""
        found = [(change.kind, os.fsdecode(change.path)) for change in self.compared()]
        assert [(change.kind, os.fsdecode(change.path)) for change in self.compared(read=False)] == found
        return found


def pair_in(folder: Path) -> Pair:
    """Two trees alike, of files, a link and a pipe, all of one age."""
    made = Pair(folder)
    for name in ("a", "d/e/f", "d/e/g", "d/z", "k/l", "z"):
        (made.old / name).parent.mkdir(parents=True, exist_ok=True)
        (made.old / name).write_text(f"content of {name}")
    (made.old / "s").symlink_to("target")
    for path in made.old.rglob("*"):
        os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    made.copy()
    for side in (made.old, made.new):
        os.mkfifo(side / "p")
        os.utime(side / "p", ns=(10**18, 10**18))
    return made
