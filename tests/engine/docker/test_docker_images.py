"""Images and what containers do to them, with a real dockerd on dmthin."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from dmthin.units import GIB, MIB
from enginelib.daemons import ROOTFS, SCRATCH, Failed, traces
from enginelib.docker import Docker
from enginelib.waiting import until
from tests.engine.docker.conftest import MINI, SMALL
from tests.support.docker_trees import files_of
from tests.support.real_archives import comparable, gnu_tar_unpacks, now, taken

DOCKERFILE = """\
FROM mini
COPY one two /srv/
RUN echo of the container > /srv/three && ln /srv/three /srv/four && chmod 4755 /srv/one && ln -s one /srv/link
RUN rm -r /srv/old && echo a file > /srv/old && rm /etc/motd
RUN rm /srv/two && mkdir /srv/two && echo inside > /srv/two/file
CMD ["cat", "/srv/old"]
"""


@pytest.fixture
def context(folder: Path) -> Path:
    """What a build needs."""
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "one").write_text("one\n")
    (folder / "two").write_text("two\n")
    return folder


def tree_of(docker: Docker, image: str) -> dict[str, tuple[str, int, str]]:
    """What `docker export` says of an image's files: type, mode, link."""
    name = docker("create", "--net=none", image, "true").strip()
    tar = docker.run("export", name).stdout
    docker("rm", name)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {
            member.name: (member.type.decode(), member.mode & 0o7777, member.linkname)
            for member in archive
            if member.name.startswith(("srv", "etc/motd"))
        }


def test_a_real_root_file_system(docker: Docker) -> None:
    """It is one that mmdebstrap has made, and has the files that GNU tar unpacks."""
    root, since = SCRATCH / "peer-tar", now()
    docker("import", str(ROOTFS), "debian")
    theirs = taken(root, gnu_tar_unpacks(ROOTFS), since, modes=True)
    assert not theirs.refused
    assert comparable(files_of(docker, "debian"), since, modes=True) == theirs.files
    shutil.rmtree(root)
    said = docker.container("debian", "sh", "-c", ". /etc/os-release; echo $ID; find / -xdev | wc -l")
    name, count = said.split()
    assert name == "debian"
    assert int(count) > 5000
    docker("rmi", "debian")


def test_run_exec_cp_diff_commit_export(docker: Docker, folder: Path) -> None:
    docker("run", "-d", "--net=none", "--name", "web", MINI, "sleep", "1000")
    assert docker("exec", "web", "cat", "/etc/motd") == "hello\n"
    docker("exec", "web", "sh", "-c", "echo new > /srv/new; rm /srv/old/file; chmod 600 /etc/motd")
    (folder / "in").write_text("from outside\n")
    docker("cp", str(folder / "in"), "web:/srv/in")
    assert docker("exec", "web", "cat", "/srv/in") == "from outside\n"
    docker("cp", "web:/srv/new", str(folder / "out"))
    assert (folder / "out").read_text() == "new\n"
    lines = sorted(docker("diff", "web").splitlines())
    assert lines == ["A /srv/in", "A /srv/new", "C /etc", "C /etc/motd", "C /srv", "C /srv/old", "D /srv/old/file"]
    docker("commit", "web", "web:two")
    assert docker.container("web:two", "sh", "-c", "cat /srv/new; ls /srv/old; stat -c %a /etc/motd") == "new\n600\n"
    assert docker.container(MINI, "cat", "/srv/old/file") == "old\n"
    assert "srv/in" in tree_of(docker, "web:two")
    docker("rm", "-f", "web")
    docker("rmi", "web:two")


@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_build(docker: Docker, context: Path, buildkit: bool) -> None:
    docker("build", "--network=none", "-t", "built", str(context), buildkit=buildkit)
    assert docker.container("built") == "a file\n"
    assert tree_of(docker, "built") == {
        "srv": ("5", 0o755, ""),
        "srv/link": ("2", 0o777, "one"),
        "srv/old": ("0", 0o644, ""),
        "srv/one": ("0", 0o4755, ""),
        "srv/three": ("1", 0o644, "srv/four"),
        "srv/four": ("0", 0o644, ""),
        "srv/two": ("5", 0o755, ""),
        "srv/two/file": ("0", 0o644, ""),
    }
    docker("rmi", "built")
    docker("builder", "prune", "-af")
    docker.await_only_known_volumes()


def test_a_saved_image_is_the_same_in_another_store(docker: Docker, context: Path, folder: Path) -> None:
    docker("build", "--network=none", "-t", "built", str(context))
    docker("save", "-o", str(folder / "saved.tar"), "built")
    other = Docker(SCRATCH / "other", "second", *SMALL)
    try:
        other.start()
        other("load", "-i", str(folder / "saved.tar"))
        wanted, got = (json.loads(engine("inspect", "built"))[0] for engine in (docker, other))
        assert (got["Id"], got["RootFS"]) == (wanted["Id"], wanted["RootFS"])
        assert tree_of(other, "built") == tree_of(docker, "built")
        other("save", "-o", str(folder / "again.tar"), "built")  # dockerd compares each layer's digest
        other("rmi", "built")
        other.await_only_known_volumes()
    finally:
        other.stop()
    assert traces(other.home) == []
    docker("rmi", "built")


def test_size_of_one_container(docker: Docker) -> None:
    said = docker.container(MINI, "df", "-m", "/", options=["--storage-opt", "size=2G"])
    assert int(said.splitlines()[1].split()[1]) > 1800
    said = docker.container(MINI, "df", "-m", "/")
    assert int(said.splitlines()[1].split()[1]) < 512
    with pytest.raises(Failed, match=r"size 128M is less than the 512M"):
        docker.container(MINI, "true", options=["--storage-opt", "size=128M"])
    with pytest.raises(Failed, match=r"only size=SIZE is known"):
        docker.container(MINI, "true", options=["--storage-opt", "colour=red"])
    docker("create", "--net=none", "--name", "large", "--storage-opt", "size=1G", MINI, "true")
    assert docker("inspect", "-f", "{{.GraphDriver.Data.DeviceSize}}", "large").strip() == str(GIB)


def test_what_docker_shows(docker: Docker) -> None:
    info = json.loads(docker("info", "--format", "{{json .}}"))
    assert info["Driver"] == "dmthin"
    status = dict(info["DriverStatus"])
    assert status["Pool Mode"] == "rw"
    assert status["Base Device Size"] == "536.9MB"
    assert status["Data Space Total"] == "8.59GB"
    docker("create", "--net=none", "--name", "web", MINI, "true")
    data = json.loads(docker("inspect", "-f", "{{json .GraphDriver}}", "web"))
    assert data["Name"] == "dmthin"
    assert set(data["Data"]) == {"DeviceId", "DeviceSize", "DeviceName"}
    assert MINI in docker("system", "df", "-v")
    assert "512" not in docker("ps", "-as", "--format", "{{.Size}}")
    assert docker("image", "inspect", "-f", "{{.GraphDriver.Data.DeviceSize}}", MINI).strip() == str(512 * MIB)
    docker("rm", "web")


def test_a_container_that_fills_its_volume(docker: Docker) -> None:
    with pytest.raises(Failed, match="No space left on device"):
        docker.container(MINI, "dd", "if=/dev/zero", "of=/full", "bs=1M")
    docker.container(MINI, "true")


def test_removed_is_gone(docker: Docker) -> None:
    docker("run", "--net=none", "--name", "web", MINI, "touch", "/x")
    docker("commit", "web", "gone")
    with docker.store() as store:
        before = len(store.ledger.volumes())
    docker("rm", "web")
    docker("rmi", "gone")
    docker("container", "prune", "-f")
    docker("image", "prune", "-f")
    with docker.store() as store:
        until(lambda: len(store.ledger.volumes()) == before - 3)
        until(lambda: store.ledger.unfinished() == [])
    docker.await_only_known_volumes()
