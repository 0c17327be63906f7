"""Faults of the host below a store: the one line of the error names them, and not another cause."""

import re
import resource
import subprocess
from pathlib import Path

import pytest

from dmthin.store.store import Store
from tests.support.command import COMMAND, SMALL_OPTIONS, Command, picture
from tests.support.stores import kernel_state


def _without(place: str, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a mount namespace in which a folder is empty."""
    script = f'mount -t tmpfs none {place} && exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", script, "sh", *COMMAND, "--root", str(root), *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


DOWN = (["pool", "deactivate"], ["pool", "destroy", "--yes"])
MOUNTED = (["container", "mount", "web"], ["container", "unmount", "web"], ["container", "rm", "web"])


@pytest.mark.parametrize(("place", "kind", "verbs"), [("/sys", "sysfs", DOWN), ("/proc", "proc", MOUNTED)])
def test_without_what_the_kernel_tells(
    dmthin: Command, store: Store, image: str, place: str, kind: str, verbs: tuple[list[str], ...]
) -> None:
    """Nothing would look mounted, and no loop device bound."""
    dmthin.ok("container", "create", image, "web")
    if place == "/proc":
        dmthin.ok("container", "mount", "web")
    before = picture(store)
    for words in verbs:
        done = _without(place, store.layout.root, *words)
        assert done.stderr == f"dmthin: {place} is not mounted: run: mount -t {kind} {kind} {place}\n", words
        assert done.returncode == 9
        assert picture(store) == before


def test_with_few_descriptors(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    before = picture(store)
    outcomes = set()
    for limit in range(6, 40, 3):

        def lower(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        line = [*COMMAND, "--root", str(store.layout.root), "container", "mount", "web"]
        done = subprocess.run(line, preexec_fn=lower, capture_output=True, text=True, check=False)
        outcomes.add(done.returncode)
        if done.returncode:
            assert f"as its limit allows ({limit})" in done.stderr, (limit, done.stderr)
            assert picture(store) == before
        else:
            dmthin.ok("container", "unmount", "web")
            before = picture(store)
    assert 0 in outcomes
    assert len(outcomes) == 2


def test_a_path_that_is_too_long_or_leads_nowhere(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = kernel_state()
    deep = scratch / ("d" * 200) / ("e" * 200) / ("f" * 150)
    deep.mkdir(parents=True)
    loop = scratch / "loop"
    loop.symlink_to(loop)
    for root, words in (
        (deep / "s", r"the path of the store is too long: .*--root"),
        (scratch / ("n" * 300), r"name too long: choose a shorter path"),
        (loop, "links that lead to themselves"),
    ):
        command = Command(root, capsys)
        said = command.fails(2, "pool", "create", *SMALL_OPTIONS)
        assert re.search(words, said), said
    assert list(deep.iterdir()) == []
    assert kernel_state() == before


def test_a_file_system_that_is_read_only(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = scratch / "read-only"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], check=True)
    try:
        said = Command(place / "store", capsys).fails(8, "pool", "create", *SMALL_OPTIONS)
        assert said.endswith(": its file system is mounted read-only: mount it writable, or choose another place")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_program_that_is_missing(scratch: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = Command(scratch / "fresh", capsys)
    fresh.ok("pool", "create", *SMALL_OPTIONS)
    hide = 'for p in /usr/sbin/mkfs.ext4 /sbin/mkfs.ext4; do mount --bind /dev/null "$(realpath $p)"; done; exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", hide, "sh", *COMMAND, "--root", str(fresh.root), "image", "import", "i"]
    done = subprocess.run([*line, str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert done.stderr == "dmthin: the program mkfs.ext4 is missing: install it: apt-get install e2fsprogs\n"
    assert fresh.ok("list").out == ""
    fresh.ok("pool", "destroy", "--yes")
    assert not fresh.root.exists()
