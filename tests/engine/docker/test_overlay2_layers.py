"""Layers that dockerd's own overlay2 driver has made hold the same files on dmthin."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginelib.daemons import SCRATCH
from enginelib.docker import Docker
from tests.engine.docker.conftest import MINI

DOCKERFILE = """\
FROM mini
RUN rm -r /srv/old && mkdir /srv/old && echo new > /srv/old/new && echo dot > /srv/old/.dot
RUN mkdir -p /srv/deep/er && touch /srv/deep/er/stale /srv/deep/stale
RUN rm -r /srv/deep && mkdir -p /srv/deep/er && touch /srv/deep/er/new
RUN rm -r /srv/deep/er && mkdir /srv/deep/er
"""
OPAQUE = {"srv/old/.wh..wh..opq", "srv/deep/.wh..wh..opq", "srv/deep/er/.wh..wh..opq"}
"""Where overlay2 says that a directory was made anew. Only it does: other drivers list what has gone."""


@pytest.fixture
def overlay2(mini: bytes) -> Iterator[Docker]:
    """A dockerd on its overlay2 driver, with the small image."""
    docker = Docker(SCRATCH / "overlay2", "overlay2")
    docker.start()
    docker("import", "-", MINI, stdin=mini)
    yield docker
    docker.stop()


def names_in_layers(saved: Path) -> set[str]:
    """Every name in the layers of an image that `docker save` has written."""
    with tarfile.open(saved) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        names: set[str] = set()
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as tar:
                names.update(tar.getnames())
    return names


def exported(docker: Docker, image: str) -> dict[str, tuple[bytes, int, str, bytes]]:
    """Type, mode, link and content of every file in /srv of an image, as `docker export` writes them."""
    container = docker("create", "--net=none", image, "true").strip()
    tar = docker.run("export", container).stdout
    docker("rm", container)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {
            member.name: (
                member.type,
                member.mode,
                member.linkname,
                (archive.extractfile(member) or io.BytesIO()).read() if member.isfile() else b"",
            )
            for member in archive
            if member.name.startswith("srv")
        }


def test_directories_that_were_made_anew_hold_nothing_of_the_layers_below(
    overlay2: Docker, docker: Docker, folder: Path
) -> None:
    (folder / "Dockerfile").write_text(DOCKERFILE)
    overlay2("build", "--network=none", "-t", "renewed", str(folder))
    overlay2("save", "-o", str(folder / "renewed.tar"), "renewed")
    assert names_in_layers(folder / "renewed.tar") >= OPAQUE
    docker("load", "-i", str(folder / "renewed.tar"))
    expected = exported(overlay2, "renewed")
    assert sorted(expected) == ["srv", "srv/deep", "srv/deep/er", "srv/old", "srv/old/.dot", "srv/old/new"]
    assert exported(docker, "renewed") == expected
    docker("rmi", "renewed")
    docker.await_only_known_volumes()
