"""Many at once, restarts, daemons that are killed, and devices that are busy."""

import io
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from dmthin.units import MIB
from enginelib.daemons import SCRATCH, Failed, tar_of, traces
from enginelib.docker import Docker
from enginelib.waiting import PATIENCE, until
from tests.engine.docker.conftest import MINI

FILES = 3000


def running(docker: Docker, name: str) -> bool:
    return docker("inspect", "-f", "{{.State.Running}}", name).strip() == "true"


def workers() -> list[str]:
    """The processes that unpack layers."""
    done = subprocess.run(["pgrep", "-f", "dmthin.layers.worker"], capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, mini: bytes) -> Path:
    """The tar of a root file system that takes a while to unpack."""
    path = tmp_path_factory.mktemp("layer") / "layer.tar"
    path.write_bytes(tar_of({f"d{number % 30}/f{number}": b"x" * 2000 for number in range(FILES)}))
    return path


def test_twenty_at_once(docker: Docker) -> None:
    names = [f"c{number}" for number in range(20)]
    starting = [docker.begin("run", "-d", "--net=none", "--name", name, MINI, "sleep", "1000") for name in names]
    for process in starting:
        _, words = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, words.decode()
    assert all(running(docker, name) for name in names)
    ending = [docker.begin("rm", "-f", name) for name in names]
    for process in ending:
        _, words = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, words.decode()
    with docker.store() as store:
        assert store.layers.mounted() == []
    docker.await_only_known_volumes()


def test_dockerd_restarted_with_containers_present(docker: Docker) -> None:
    docker("run", "-d", "--net=none", "--name", "web", MINI, "sleep", "1000")
    docker("exec", "web", "touch", "/srv/mark")
    docker.dockerd.end()
    docker.start()
    assert not running(docker, "web")
    docker("start", "web")
    assert docker("exec", "web", "ls", "/srv/mark") == "/srv/mark\n"
    docker.dockerd.end(signal.SIGKILL)
    docker.start()
    docker("rm", "-f", "web")
    assert docker.container(MINI, "cat", "/etc/motd") == "hello\n"


def test_dmthin_killed_while_containers_run(docker: Docker) -> None:
    program = "while :; do touch /srv/alive; sleep 0.1; done"
    docker("run", "-d", "--net=none", "--name", "web", MINI, "sh", "-c", program)
    root = Path("/proc", docker("inspect", "-f", "{{.State.Pid}}", "web").strip(), "root")
    docker.dmthin.end(signal.SIGKILL)
    (root / "srv/alive").unlink(missing_ok=True)
    until((root / "srv/alive").exists)
    (root / "srv/on").write_text("on\n")
    docker.start()
    assert docker("exec", "web", "cat", "/srv/on") == "on\n"
    assert docker("diff", "web").splitlines() == ["C /srv", "A /srv/alive", "A /srv/on"]
    assert docker.container(MINI, "cat", "/etc/motd") == "hello\n"
    docker("stop", "-t", "0", "web")
    docker("start", "web")
    assert docker("exec", "web", "cat", "/srv/on") == "on\n"
    docker("rm", "-f", "web")
    with docker.store() as store:
        assert store.layers.mounted() == []


def test_dmthin_killed_in_the_middle_of_a_layer(docker: Docker, layer: Path) -> None:
    importing = docker.begin("import", "-", "killed", stdin=subprocess.PIPE)
    content = layer.read_bytes()
    assert importing.stdin is not None
    importing.stdin.write(content[: len(content) // 2])  # and no more, so the worker cannot end
    importing.stdin.flush()
    until(workers)
    docker.dmthin.end(signal.SIGKILL)
    until(lambda: not workers())
    docker.start()
    importing.communicate(timeout=PATIENCE)
    docker("import", str(layer), "whole")
    with tarfile.open(fileobj=io.BytesIO(_exported(docker, "whole"))) as tar:
        assert sum(member.isfile() for member in tar if "/f" in member.name) == FILES
    for name in ("whole", "killed"):
        docker.run("rmi", name)
    until(lambda: not docker.unknown_volumes())


def _exported(docker: Docker, image: str) -> bytes:
    name = docker("create", "--net=none", image, "nothing").strip()
    try:
        return docker.run("export", name).stdout
    finally:
        docker("rm", name)


def test_a_busy_container_is_removed_with_its_last_user(docker: Docker) -> None:
    name = docker("run", "-d", "--net=none", MINI, "sleep", "1000").strip()
    place = (docker.data_root / "image/dmthin/layerdb/mounts" / name / "mount-id").read_text()
    holder = subprocess.Popen(["sleep", "1000"], cwd=docker.home / "mnt" / place)
    try:
        docker("rm", "-f", name)
        assert "sleep (pid" in docker.dmthin.log.read_text()
        with docker.store() as store:
            until(lambda: len(store.ledger.unfinished()) == 1)  # its lower layer is removed as well
            (left,) = store.ledger.unfinished()
            info = store.volumes.info(left)
            assert info is not None
            assert info.open_count
    finally:
        holder.kill()
        holder.wait()
    with docker.store() as store:
        until(lambda: not store.ledger.unfinished())


def test_a_full_pool_refuses_and_recovers(mini: bytes) -> None:
    docker = Docker(SCRATCH / "full", "full", "dm.loopdatasize=300M", "dm.loopmetadatasize=16M", "dm.basesize=320M")
    try:
        docker.start()
        docker("import", "-", MINI, stdin=mini)
        with docker.store() as store:
            pool = store.pool.status()
        count = f"count={(pool.data_size * 93 // 100 - pool.data_used) // MIB}"
        docker("run", "--net=none", "--name", "large", MINI, "dd", "if=/dev/urandom", "of=/large", "bs=1M", count)
        with pytest.raises(Failed, match=r"less than 10%.*data is free.*remove volumes"):
            docker("create", "--net=none", "--name", "refused", MINI, "true")
        assert "Pool Mode: rw" in docker("info")
        docker("rm", "large")
        docker("create", "--net=none", "--name", "again", MINI, "true")
        docker("rm", "again")
        docker.await_only_known_volumes()
    finally:
        docker.stop()
    assert traces(docker.home) == []


def test_without_dmthin_docker_says_so_and_goes_on_with_it(docker: Docker) -> None:
    assert docker.dmthin.end() == 0
    assert not docker.plugin.exists()
    words_before = len(docker.dockerd.log.read_bytes())
    creating = docker.begin("create", "--net=none", MINI, "true")  # dockerd tries again for a while
    until(lambda: b"retrying in" in docker.dockerd.log.read_bytes()[words_before:])
    docker.start()
    _, words = creating.communicate(timeout=PATIENCE)
    assert creating.returncode == 0, words.decode()


def test_the_pool_may_be_extended_below_running_containers(docker: Docker) -> None:
    docker("run", "-d", "--net=none", "--name", "web", MINI, "sleep", "1000")
    with docker.store() as store:
        before = store.pool.status().data_size
        store.pool.extend(data_size=before + 512 * MIB)
    docker("exec", "web", "touch", "/srv/after")
