"""`dmthin image verify` in a store of containerd: snapshots compared with the blobs that they were unpacked from."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.containerd import DMTHIN, Containerd


def verified(containerd: Containerd, *words: str) -> tuple[int, dict[str, list[str]], str]:
    """The exit status, the problems of each layer, and the error."""
    line = ["dmthin", "--json", "--root", str(containerd.stores[DMTHIN]), "image", "verify"]
    done = subprocess.run(
        [*line, "--containerd-root", str(containerd.folder / "root"), *words], capture_output=True, text=True
    )
    layers = json.loads(done.stdout)["layers"] if done.stdout else []
    return done.returncode, {layer["chain_id"]: layer["problems"] for layer in layers}, done.stderr


@contextmanager
def opened(containerd: Containerd, name: str) -> Iterator[Path]:
    """Mount a committed snapshot writable, as no client of containerd can."""
    (volume,) = (snapshot.volume for snapshot in containerd.kept() if snapshot.key.endswith(f"/{name}"))
    with containerd.store() as store, store.layers.opened(volume.name) as root:
        yield Path(f"/proc/self/fd/{root}")


def test_a_sound_image(containerd: Containerd, chain: list[str]) -> None:
    assert verified(containerd) == (0, {key: [] for key in chain}, "")
    image = containerd("images", "ls").splitlines()[1].split()[2]
    assert verified(containerd, image[:20]) == (0, {key: [] for key in chain}, "")
    status, _, error = verified(containerd, "sha256:0123")
    assert status == 3
    assert "no image whose digest begins with sha256:0123" in error


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda root: (root / "srv/hidden/a").touch(), ["srv/hidden/a should have been deleted"]),
        (lambda root: (root / "srv/kind").touch(), ["srv/kind should have been deleted"]),
        (
            lambda root: (root / "srv/hidden/c").write_bytes(b"OF THE THIRD\n"),
            ["srv/hidden/c has another content or type"],
        ),
        (lambda root: (root / "srv/hidden/c").unlink(), ["srv/hidden/c is missing, or has another size"]),
    ],
    ids=["opaque", "whiteout", "changed", "missing"],
)
def test_a_damaged_layer(
    containerd: Containerd, chain: list[str], damage: Callable[[Path], object], problems: list[str]
) -> None:
    """The uppermost of three, damaged below the snapshot's back and mended again."""
    top = chain[-1]
    with opened(containerd, top) as root:
        kept = {path: path.read_bytes() for path in (root / "srv/hidden").iterdir()}
        there = {*(root / "srv").rglob("*")}
        damage(root)
    try:
        status, found, error = verified(containerd)
    finally:
        with opened(containerd, top) as root:
            for path in {*(root / "srv").rglob("*")} - there:
                path.unlink()
            for path, content in kept.items():
                path.write_bytes(content)
    assert (status, found[top]) == (10, problems)
    assert [found[name] for name in chain[:-1]] == [[], []]
    assert "1 of 3 layers differ from their tars" in error
    assert verified(containerd)[0] == 0


def test_a_layer_whose_blob_is_not_there(containerd: Containerd, chain: list[str], tmp_path: Path) -> None:
    (tmp_path / "io.containerd.content.v1.content/blobs/sha256").mkdir(parents=True)
    status, found, _ = verified(containerd, "--containerd-root", str(tmp_path))
    assert (status, found) == (0, {key: [] for key in chain})
    line = ["dmthin", "--root", str(containerd.stores[DMTHIN]), "image", "verify", "--containerd-root", str(tmp_path)]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert shown.count("not checked: its blob is not among containerd's") == 3


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: b"", "is not the tar of sha256:"),
        (lambda content: content[:-20], "what it is compared with cannot be read"),
        (lambda content: content[:40] + bytes(20) + content[60:], "what it is compared with cannot be read"),
    ],
    ids=["empty", "truncated", "changed"],
)
def test_a_damaged_blob(
    containerd: Containerd, chain: list[str], tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    """Of the uppermost layer, which is compressed; the others are verified all the same."""
    blobs = "io.containerd.content.v1.content/blobs/sha256"
    shutil.copytree(containerd.folder / "root" / blobs, tmp_path / blobs)
    manifest = json.loads((tmp_path / blobs / containerd("images", "ls").split("sha256:")[1].split()[0]).read_text())
    blob = tmp_path / blobs / manifest["layers"][-1]["digest"].partition(":")[2]
    blob.write_bytes(damage(blob.read_bytes()))
    status, found, _ = verified(containerd, "--containerd-root", str(tmp_path))
    assert status == 10
    assert [found[name] for name in chain[:-1]] == [[], []]
    assert len(found[chain[-1]]) == 1
    assert problem in found[chain[-1]][0]


def test_a_folder_that_is_not_containerds(containerd: Containerd, tmp_path: Path) -> None:
    status, _, error = verified(containerd, "--containerd-root", str(tmp_path))
    assert status == 3
    assert "no blobs of containerd" in error
