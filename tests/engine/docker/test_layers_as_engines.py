"""Generated layers have the same files on dmthin as with the engines' own drivers and unpackers."""

import json
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import assume, given

from dmthin.layers.unpack import unpack
from enginelib.daemons import ENGINES, PATH, SCRATCH, Daemon
from enginelib.docker import Docker, Plugin
from enginelib.waiting import listens, until
from tests.support.archives import docker_archive_of, oci_archive
from tests.support.docker_apply import docker_applies
from tests.support.docker_trees import Entry, layers_of, merged, opened, tree
from tests.support.examples import examples
from tests.support.layer_histories import BEYOND, Member, histories, tar_of_members

History = list[tuple[Member, ...]]
Tree = dict[str, Entry]

IMAGES, MORE_IMAGES = 10, 300
ARCHIVES, MORE_ARCHIVES = 8, 400


def collected() -> dict[str, History]:
    """Return generated histories by the names of their images."""
    found: list[History] = []

    @examples(IMAGES, MORE_IMAGES)
    @given(histories(listed=True, overlay=True))
    def collect(history: History) -> None:
        found.append([layer for layer in history if layer])

    collect()
    return {f"generated:{number}": history for number, history in enumerate(found) if history}


HISTORIES = collected()


def tars(history: History) -> list[bytes]:
    return [tar_of_members(layer) for layer in history]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All images in one file, as `docker save` writes it."""
    path = tmp_path_factory.mktemp("generated") / "images.tar"
    path.write_bytes(docker_archive_of({name: tars(history) for name, history in HISTORIES.items()}))
    return path


@pytest.fixture(scope="module")
def dmthins(the_docker: Docker, archive: Path) -> Iterator[dict[str, Tree]]:
    """The files of each image on dmthin, loaded by dockerd."""
    the_docker("load", "-i", str(archive))
    found = {}
    for name in HISTORIES:
        with opened(the_docker, name) as root:
            found[name] = tree(root)
    yield found
    the_docker("rmi", *HISTORIES)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder on a file system with all extended attributes, which tmpfs has not."""
    path = SCRATCH / "unpacked"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def require_equal(ours: dict[str, Tree], theirs: Callable[[str], Tree]) -> None:
    """Compare the files of every image, and show the layers where they differ."""
    for name, history in HISTORIES.items():
        assert ours[name] == theirs(name), history


# --- dockerd's overlay2 ---------------------------------------------------------------------------------------------


def test_as_overlay2_of_dockerd(dmthins: dict[str, Tree], overlay2: Docker, archive: Path) -> None:
    overlay2("load", "-i", str(archive))
    require_equal(dmthins, lambda name: merged(overlay2, name))


# --- containerd's overlayfs -----------------------------------------------------------------------------------------


@contextmanager
def containerd(folder: Path) -> Iterator[Callable[..., str]]:
    """A containerd of its own; yields its command line."""
    folder.mkdir()
    socket, config = Path("/run/peer-containerd.sock"), folder / "config.toml"
    places = f'root = "{folder}/root"\nstate = "/run/peer-containerd"\n'
    config.write_text(f'version = 2\n{places}[grpc]\n  address = "{socket}"\n')
    daemon = Daemon(folder / "log", "containerd", "--config", str(config))
    daemon.start()

    def ctr(*words: str) -> str:
        line = ["ctr", "--address", str(socket), *words]
        done = subprocess.run(line, capture_output=True, text=True, env={"PATH": PATH})
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        until(lambda: not daemon.runs or listens(socket))
        yield ctr
    finally:
        daemon.end()


def without_trusted(files: Tree) -> Tree:
    """The files without trusted.* attributes, which containerd does not set."""

    def kept(entry: Entry) -> Entry:
        return replace(entry, attributes=tuple(pair for pair in entry.attributes if not pair[0].startswith("trusted.")))

    return {path: kept(entry) for path, entry in files.items()}


def test_as_overlayfs_of_containerd(dmthins: dict[str, Tree], archive: Path, folder: Path) -> None:
    place = folder / "merged"
    place.mkdir()
    with containerd(SCRATCH / "peer-containerd") as ctr:
        ctr("images", "import", "--snapshotter", "overlayfs", str(archive))

        def theirs(name: str) -> Tree:
            ctr("images", "mount", "--snapshotter", "overlayfs", f"docker.io/library/{name}", str(place))
            try:
                return tree(place)
            finally:
                ctr("images", "unmount", "--rm", str(place))

        require_equal({name: without_trusted(files) for name, files in dmthins.items()}, theirs)


# --- umoci ----------------------------------------------------------------------------------------------------------


def umoci_agrees(history: History) -> bool:
    """Whether umoci can be compared.

    It keeps times out of range, and a hard link's target as it is; it refuses devices of more than 8 bits.
    """
    return not any(
        member.kind == b"1"
        or max(member.device) > 0xFF
        or any(key == b"mtime" and value in BEYOND for key, value in member.records)
        for layer in history
        for member in layer
    )


def test_as_umoci(dmthins: dict[str, Tree], folder: Path) -> None:
    chosen = {name: history for name, history in HISTORIES.items() if umoci_agrees(history)}
    assert chosen
    for name, history in chosen.items():
        layout, bundle = folder / "layout", folder / "bundle"
        with tarfile.open(fileobj=BytesIO(oci_archive(name, tars(history)))) as packed:
            packed.extractall(layout, filter="data")
        index = json.loads((layout / "index.json").read_text())
        index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "it"}
        (layout / "index.json").write_text(json.dumps(index))
        line = [f"{ENGINES}/usr/bin/umoci", "raw", "unpack", "--image", f"{layout}:it", str(bundle)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, (done.stderr, history)
        assert dmthins[name] == tree(bundle), history
        for used in (layout, bundle):
            shutil.rmtree(used)


# --- dockerd's own unpacker, alone ----------------------------------------------------------------------------------


def comparable(files: Tree, history: History, listed: bool) -> Tree:
    """The files without what dockerd 20.10 has of its own: mode and group of directories that no layer lists.

    Nor has a directory a time that can be compared if a layer may change it without listing it.
    """
    named = {str(Path("/" + member.name.decode(errors="surrogateescape"))) for layer in history for member in layer}
    found = {}
    for path, entry in files.items():
        if stat.S_ISDIR(entry.mode):
            entry = entry if listed else replace(entry, mtime=0)
            entry = entry if f"/{path}" in named else replace(entry, mode=0, owner=(0, 0))
        found[path] = entry
    return found


@pytest.mark.parametrize("listed", [True, False])
def test_as_the_unpacker_of_dockerd(listed: bool, folder: Path) -> None:
    @examples(ARCHIVES, MORE_ARCHIVES)
    @given(histories(listed=listed))
    def check(history: History) -> None:
        ours, theirs = folder / "ours", folder / "theirs"
        for root in (ours, theirs):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
        for layer in tars(history):
            assume(not docker_applies(theirs, layer))
            unpack(BytesIO(layer), ours, layer=True)
        assert comparable(tree(ours), history, listed) == comparable(tree(theirs), history, listed)

    check()


# --- dmthin's diffs, for other engines ------------------------------------------------------------------------------


def test_dockerds_unpacker_makes_the_same_files_of_a_diff(
    the_docker: Docker, dmthins: dict[str, Tree], folder: Path
) -> None:
    plugin = Plugin(the_docker.plugin)
    for name in dmthins:
        root = folder / "root"
        root.mkdir()
        parent = ""
        for layer in layers_of(the_docker, name):
            assert docker_applies(root, plugin.diff(layer, parent)) == ""
            parent = layer
        assert tree(root) == dmthins[name], HISTORIES[name]
        shutil.rmtree(root)
    plugin.close()
