"""Images that other programs have made have the same files on dmthin as where they were made.

`test_contents.py` has what docker build makes on dmthin, `test_docker_images.py` what mmdebstrap makes.
"""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginelib.daemons import CACHE, PATH, SCRATCH, tar_of
from enginelib.docker import Docker
from tests.engine.docker.conftest import MINI
from tests.support.archives import docker_archive
from tests.support.docker_trees import Entry, files_of, merged, odd_tar, tree, without_directory_times
from tests.support.real_archives import content

BUILDERS = CACHE / "builders"

STEPS = """\
ADD odd.tar /srv/
COPY file /srv/copied
RUN mkdir -p /srv/full/deep && echo x > /srv/full/deep/x && ln -s full /srv/link && \\
    echo 1 > /srv/one && ln /srv/one /srv/b
RUN rm -r /srv/full && mkdir /srv/full && echo y > /srv/full/y && rm /srv/one && chmod 4711 /srv/b && rm /srv/link && \\
    mkdir /srv/link && touch /srv/link/z && rm -r /srv/old && ln -s full /srv/old
RUN rm -r /srv/link && echo file > /srv/link && busybox chown 3000000:5678 /srv/copied && busybox mkfifo /srv/fifo && \\
    rm -r /srv/odd && mkdir -m 1777 /srv/odd && touch -d @100000000 /srv/odd/old
"""
"""What builders do on a small image: each step replaces what an earlier one made, by something of another kind."""


@pytest.fixture
def context(folder: Path) -> Path:
    """The folder that a build takes its files from."""
    context = folder / "context"
    context.mkdir()
    (context / "file").write_text("of the context\n")
    (context / "odd.tar").write_bytes(odd_tar())
    return context


@pytest.fixture
def loaded(the_docker: Docker) -> Iterator[Callable[[Path, str], dict[str, Entry]]]:
    """Load an archive, and return the files of an image in it; the image is removed in the end."""
    names: list[str] = []

    def load(archive: Path, name: str) -> dict[str, Entry]:
        names.append(name)
        the_docker("load", "-i", str(archive))
        return files_of(the_docker, name)

    yield load
    the_docker("rmi", *names)


# --- docker build ---------------------------------------------------------------------------------------------------


def test_docker_build(
    overlay2: Docker, loaded: Callable[[Path, str], dict[str, Entry]], mini: bytes, context: Path
) -> None:
    """By BuildKit on overlay2; loaded there again, because a diff leaves out a directory that has only another time."""
    saved = context.with_name("saved.tar")
    (context / "Dockerfile").write_text(f"FROM {MINI}\n{STEPS}")
    overlay2("import", "-", MINI, stdin=mini)
    overlay2("build", "--network=none", "-t", "theirs", str(context), buildkit=True)
    overlay2("save", "-o", str(saved), "theirs")
    overlay2("rmi", "theirs")
    overlay2("builder", "prune", "-af")
    overlay2("load", "-i", str(saved))
    theirs = merged(overlay2, "theirs")
    assert "srv/odd/old" in theirs
    assert loaded(saved, "theirs") == theirs
    overlay2("rmi", "theirs")


# --- buildah --------------------------------------------------------------------------------------------------------


class Buildah:
    """buildah with a store of its own, on containers/storage's driver vfs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        common = BUILDERS / "etc/containers"
        config = BUILDERS / "usr/share/containers/containers.conf"
        self._environment = {"PATH": PATH, "HOME": str(folder), "CONTAINERS_CONF": str(config), "TMPDIR": str(folder)}
        self._places = ("--root", str(folder / "root"), "--runroot", "/run/peer-buildah", "--storage-driver", "vfs")
        self.policy = ("--signature-policy", str(common / "policy.json"))

    def __call__(self, *words: str) -> str:
        line = [str(BUILDERS / "usr/bin/buildah"), *self._places, *words]
        done = subprocess.run(line, capture_output=True, text=True, env=self._environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def buildah() -> Iterator[Buildah]:
    folder = SCRATCH / "peer-buildah"
    yield Buildah(folder)
    shutil.rmtree(folder)


def test_buildah(loaded: Callable[[Path, str], dict[str, Entry]], buildah: Buildah, mini: bytes, context: Path) -> None:
    (context / "mini.tar").write_bytes(mini)
    (context / "Dockerfile").write_text(f"FROM scratch\nADD mini.tar /\n{STEPS}")
    saved = context.with_name("saved.tar")
    buildah("bud", *buildah.policy, "--isolation", "chroot", "--layers", "-t", "localhost/theirs", str(context))
    buildah("push", *buildah.policy, "localhost/theirs", f"docker-archive:{saved}:theirs:latest")
    container = buildah("from", *buildah.policy, "--pull-never", "localhost/theirs")
    theirs = tree(Path(buildah("mount", container)))
    buildah("umount", container)
    assert "srv/odd/old" in theirs
    assert loaded(saved, "theirs") == theirs


# --- umoci ----------------------------------------------------------------------------------------------------------


def umoci(*words: str) -> None:
    done = subprocess.run(["umoci", *words], capture_output=True, text=True, env={"PATH": PATH})
    assert done.returncode == 0, done.stderr


def first(root: Path) -> None:
    """Fill an empty image."""
    subprocess.run(["tar", "-xpC", str(root), "--xattrs", "--xattrs-include=*"], input=odd_tar(), check=True)
    for name in ("full/deep", "kept", "away"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text(f"{name}\n")
    (root / "link").symlink_to("full")


def second(root: Path) -> None:
    """Replace folders by other things and other things by folders, change attributes only, delete."""
    shutil.rmtree(root / "away")
    (root / "away").symlink_to("kept")
    (root / "link").unlink()
    (root / "link").mkdir()
    (root / "link/file").write_text("in a folder\n")
    shutil.rmtree(root / "full/deep")
    (root / "kept/file").chmod(0o4711)
    os.chown(root / "kept", 3_000_000, 5678)
    os.link(root / "kept/file", root / "kept/another")
    os.mknod(root / "kept/null", 0o20666, os.makedev(1, 3))


def third(root: Path) -> None:
    """Make folders anew, and replace what the second layer made."""
    shutil.rmtree(root / "link")
    (root / "link").write_text("a file\n")
    shutil.rmtree(root / "odd")
    (root / "odd").mkdir(0o1777)
    (root / "odd/new").write_text("new\n")
    (root / "kept/another").unlink()
    (root / "away").unlink()


def layers_of_layout(layout: Path) -> list[bytes]:
    """The tars of the newest image in an OCI layout."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][-1]["digest"]))
    return [gzip.decompress(blob(layer["digest"])) for layer in manifest["layers"]]


def test_umoci(loaded: Callable[[Path, str], dict[str, Entry]], folder: Path) -> None:
    place = SCRATCH / "peer-umoci"
    layout, bundle, again = place / "layout", place / "bundle", place / "again"
    place.mkdir()
    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:it")
    umoci("unpack", "--image", f"{layout}:it", str(bundle))
    for change in (first, second, third):
        change(bundle / "rootfs")
        umoci("repack", "--refresh-bundle", "--image", f"{layout}:it", str(bundle))
    umoci("raw", "unpack", "--image", f"{layout}:it", str(again))
    theirs = tree(again)
    layers = layers_of_layout(layout)
    assert len(layers) == 3
    (folder / "image.tar").write_bytes(docker_archive("theirs:latest", layers))
    assert loaded(folder / "image.tar", "theirs") == theirs
    shutil.rmtree(place)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_a_layer_that_ends_early(
    overlay2: Docker, loaded: Callable[[Path, str], dict[str, Entry]], folder: Path
) -> None:
    """It ends after an extended header. One of no bytes at all cannot be told from a request that dockerd repeats."""
    layers = [tar_of({"first": b"1"}), content("gnutar/multiv10/posix/2.tar")]
    (folder / "image.tar").write_bytes(docker_archive("theirs:latest", layers))
    overlay2("load", "-i", str(folder / "image.tar"))
    theirs = without_directory_times(merged(overlay2, "theirs"))
    assert len(theirs) > 1
    assert without_directory_times(loaded(folder / "image.tar", "theirs")) == theirs
    overlay2("rmi", "theirs")
