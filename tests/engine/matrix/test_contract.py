"""What each engine does with images and containers on dmthin.

The first line of a test's docstring heads its row in docs/engines.md.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dmthin.units import GIB, MIB
from enginelib.daemons import Failed, tar_of
from enginelib.waiting import until
from tests.engine.matrix.base import Engine
from tests.engine.matrix.conftest import IMAGE, Finding
from tests.engine.matrix.engines import DockerPlugin

LOOK = "find /srv; cat /etc/motd /srv/new /srv/hidden/c"
SEEN = {"/srv", "/srv/old", "/srv/new", "/srv/hidden", "/srv/hidden/c", "changed", "of the second", "of the third"}

HELD = "find /srv /etc/motd /bin -exec stat -c '%n %F %a %u:%g %h %s %Y' {} ';' -type f -exec busybox md5sum {} ';'"
"""Tells what a container holds: names, kinds, modes, owners, links, sizes, times, and what is in files."""


def seen(engine: Engine, image: str = IMAGE) -> set[str]:
    """What a container of an image finds in it."""
    return set(engine.once(image, LOOK).splitlines())


def mebibytes(engine: Engine, size: int = 0) -> int:
    """The size of a container's file system, as df tells it."""
    said: list[str] = []

    def it_said() -> bool:
        said[:] = engine.once(IMAGE, "df -m / | while read _ size _; do echo $size; done", size).split()
        return bool(said)

    until(it_said)  # ctr may lose the end of what a container prints just before it ends
    return int(said[-1])


def dmthin(engine: Engine, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command on the engine's store; only a dockerd of Docker 28 or later has names elsewhere."""
    environment = os.environ | {"DMTHIN_DOCKER_ROOT": str(engine.folder / "docker")}
    line = ["dmthin", "--root", str(engine.root()), *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


def tidied(engine: Engine) -> list[str]:
    """What dmthin holds once nothing is left that the engine may remove."""
    engine.tidy()
    engine.settle()
    return sorted(engine.volumes())


def write(engine: Engine, name: str) -> None:
    """Let a container change, add and remove something."""
    more = "echo four > /srv/four; ln /srv/four /srv/too; echo more >> /srv/new; chmod 4711 /srv/new"
    engine.execute(name, f"rm -r /srv/old; {more}")


def check_written(engine: Engine, image: str) -> None:
    """An image has what `write` has done."""
    script = "ls /srv; stat -c %h,%a /srv/too /srv/new; cat /srv/too /srv/new"
    names, attributes, content = "four\nhidden\nnew\ntoo\n", "2,644\n1,4711\n", "four\nof the second\nmore\n"
    until(lambda: engine.once(image, script) == names + attributes + content)


def test_load_and_run(engine: Engine) -> None:
    """load of an image with whiteouts, run."""
    until(lambda: seen(engine) == SEEN)


def test_names(engine: Engine) -> None:
    """dmthin list, inspect and resize by the container's name; rm of it is refused."""
    engine.begin(IMAGE, "web")
    shown = {one["engine_name"]: one["name"] for one in json.loads(dmthin(engine, "--json", "list").stdout)["volumes"]}
    image = f"{IMAGE}:latest" if type(engine) is DockerPlugin else "image of web"
    assert {"web", image} <= set(shown)
    for text in ("web", shown["web"]):
        assert json.loads(dmthin(engine, "inspect", text).stdout)[0]["name"] == shown["web"]
    done = dmthin(engine, "container", "resize", "web", "1G")
    assert (done.returncode, done.stderr) == (0, "resized web: 512M -> 1G\n")
    assert int(engine.execute("web", "df -m / | { read head; read name size rest; echo $size; }")) > 900
    refused = dmthin(engine, "container", "rm", "web")
    assert refused.returncode == 5
    assert '"web"' in refused.stderr
    assert refused.stderr.endswith("or give --force\n")
    engine.execute("web", "true")


def test_exec_and_two_containers(engine: Engine) -> None:
    """exec; two containers apart; stop and start."""
    for name in ("one", "two"):
        engine.begin(IMAGE, name)
    engine.execute("one", "echo one > /srv/mine; rm /srv/new")
    engine.execute("two", "echo two > /srv/mine; echo more >> /srv/new")
    assert engine.execute("one", "cat /srv/mine; ls /srv") == "one\nhidden\nmine\nold\n"
    assert engine.execute("two", "cat /srv/mine /srv/new") == "two\nof the second\nmore\n"
    engine.end("one")
    engine.again("one")
    assert engine.execute("one", "cat /srv/mine") == "one\n"
    engine.remove("one", "two")
    until(lambda: seen(engine) == SEEN)


def test_commit_of_a_stopped_container(engine: Engine) -> None:
    """commit of a stopped container."""
    engine.begin(IMAGE, "web")
    write(engine, "web")
    engine.end("web")
    engine.commit("web", "stopped")
    check_written(engine, "stopped")
    engine.remove("web")
    engine.forget("stopped")


def test_commit_of_a_running_container(engine: Engine, finding: Finding) -> None:
    """commit of a running container."""
    engine.begin(IMAGE, "web")
    write(engine, "web")
    held = sorted(engine.execute("web", HELD).splitlines())
    if engine.mounts_to_commit():
        with pytest.raises(Failed, match="device or resource busy"):
            engine.commit("web", "running")
        finding("no: containerd's differ mounts the snapshot a second time, read-only")
        return
    engine.commit("web", "running")
    engine.execute(
        "web", "rm /srv/four; touch /srv/later; echo later | dd of=/srv/new conv=notrunc; chmod 777 /srv/hidden"
    )
    assert sorted(engine.execute("web", HELD).splitlines()) != held
    check_written(engine, "running")
    until(lambda: sorted(engine.once("running", HELD).splitlines()) == held)
    engine.remove("web")
    engine.forget("running")


@pytest.mark.parametrize("builder", ["classic builder", "BuildKit"])
def test_build(engine: DockerPlugin, builder: str, tmp_path: Path) -> None:
    """build"""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nCOPY file /srv/\nRUN rm -r /srv/hidden && ln /srv/file /srv/link && chmod 4755 /srv/file\n"
        'CMD ["sh", "-c", "ls /srv; stat -c %h,%a /srv/link"]\n'
    )
    (tmp_path / "file").write_text("of the context\n")
    engine.docker("build", "--network=none", "-t", "built", str(tmp_path), buildkit=builder == "BuildKit")
    assert engine.docker.container("built").split() == ["file", "link", "new", "old", "2,4755"]
    engine.forget("built")


def test_save_and_load(engine: Engine, tmp_path: Path) -> None:
    """save, load in another store, equal digests."""
    engine.save(IMAGE, tmp_path / "saved.tar")
    other = engine.elsewhere()
    other.start()
    try:
        other.take(tmp_path / "saved.tar")
        assert other.digests(IMAGE) == engine.digests(IMAGE)
        until(lambda: seen(other) == SEEN)
        other.save(IMAGE, tmp_path / "again.tar")
    finally:
        other.take_down()


def test_sizes(engine: Engine) -> None:
    """a size for one container."""
    assert 256 < mebibytes(engine) < 512
    assert 1800 < mebibytes(engine, 2 * GIB) < 2048
    with pytest.raises(Failed, match="size 256M is less than the 512M"):
        engine.once(IMAGE, "true", 256 * MIB)


def test_removed_is_gone(engine: Engine) -> None:
    """rm, prune: the space comes back."""
    before = tidied(engine)
    with engine.store() as store:
        used = store.pool.status().data_used
    engine.load("gone", [tar_of({"first": b""}), tar_of({"large": bytes(range(256)) * (40 * MIB // 256)})])
    engine.begin(IMAGE, "web")
    engine.execute("web", "dd if=/dev/urandom of=/srv/large bs=1M count=16")
    assert len(engine.volumes()) > len(before) + 2
    engine.remove("web")
    engine.forget("gone")
    engine.tidy()
    until(lambda: sorted(engine.volumes()) == before, again=engine.tidy)
    engine.settle()
    with engine.store() as store:
        until(lambda: store.pool.status().data_used < used + 8 * MIB)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_engine_restarts(engine: Engine, number: signal.Signals) -> None:
    """the engine ends and starts, containers are there:"""
    engine.begin(IMAGE, "web")
    engine.execute("web", "echo kept > /srv/kept")
    engine.daemon.end(number)
    engine.start()
    engine.end("web")
    engine.again("web")
    assert engine.execute("web", "cat /srv/kept /srv/new") == "kept\nof the second\n"
    engine.remove("web")
    until(lambda: seen(engine) == SEEN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_dmthin_restarts(engine: Engine, number: signal.Signals) -> None:
    """dmthin ends and starts below a running container:"""
    engine.begin(IMAGE, "web")
    engine.execute("web", "echo kept > /srv/kept")
    engine.dmthin.end(number)
    engine.start()
    assert engine.execute("web", "cat /srv/kept; echo more > /srv/more; cat /srv/more") == "kept\nmore\n"
    engine.end("web")
    engine.again("web")
    assert engine.execute("web", "cat /srv/more") == "more\n"
    engine.remove("web")
    until(lambda: seen(engine) == SEEN)


def test_dmthin_killed_in_the_middle_of_a_call(engine: Engine) -> None:
    """SIGKILL of dmthin in the middle of a call, then all over."""
    layers = [tar_of({"srv/whole": b"whole\n"}), engine.lowest]
    before = tidied(engine)
    engine.kill_within_a_call("again", layers)
    engine.start()
    engine.load("again", layers)
    until(lambda: engine.once("again", "cat /srv/whole").split() == ["whole"])
    engine.forget("again")
    engine.tidy()
    until(lambda: sorted(engine.volumes()) == before, again=engine.tidy)
    engine.settle()


def test_nothing_is_left(engine: Engine) -> None:
    """all removed: no device, loop, mount or volume is left, and the pool passes thin_check."""
    engine.take_down()
    assert engine.left() == []
