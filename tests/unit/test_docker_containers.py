"""What is read of dockerd's records of containers, and what of them is refused, logged or left alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dmthin.containerd.docker_containers import DockerContainers
from dmthin.errors import InvalidValue
from dmthin.units import GIB
from tests.support.docker_records import record_container, record_of

ID = "5b" * 32
KEY = f"moby/7/{ID}"


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"size": "20G"}, 20 * GIB),
        ({"Size": "1.5g"}, 3 * GIB // 2),
        ({"size": "1000000000"}, 1000001536),
        ({"size": "0"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_size_is_read_as_dockers_own_driver_reads_it(
    tmp_path: Path, options: dict[str, str] | None, size: int | None
) -> None:
    record_container(tmp_path, KEY, options)
    assert DockerContainers(tmp_path).size(KEY) == size


def test_the_data_root_may_be_a_link_and_the_namespace_any(tmp_path: Path) -> None:
    record_container(tmp_path / "real", KEY, {"size": "1G"})
    (tmp_path / "link").symlink_to("real")
    assert DockerContainers(tmp_path / "link").size(f"of-another-name/1/{ID}") == GIB


@pytest.mark.parametrize("options", [{"size": "junk"}, {"size": "-1G"}, {"size": ""}, {"quota": "1G"}])
def test_what_docker_refuses_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    record_container(tmp_path, KEY, options)
    with pytest.raises(InvalidValue, match=next(iter(options))):
        DockerContainers(tmp_path).size(KEY)


@pytest.mark.parametrize(
    "key",
    [ID, f"moby/{ID}", f"moby/7/{ID}-init", f"moby/7/{ID}-init-key", f"moby/7/{ID.upper()}", f"moby/7/x/{ID}", ""],
)
def test_keys_of_other_snapshots_are_left_alone(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    for folder in {ID, key.rpartition("/")[2] or ID}:
        record_container(tmp_path, folder, {"size": "1G"})
    assert DockerContainers(tmp_path).size(key) is None
    assert caplog.messages == []


def test_a_container_that_has_no_record_yet_is_not_worth_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_of(tmp_path, KEY).parent.mkdir(parents=True)
    assert DockerContainers(tmp_path).size(KEY) is None
    assert caplog.messages == []


def test_another_data_root_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    containers = DockerContainers(tmp_path / "nowhere")
    assert containers.size(f"k8s.io/7/{ID}") is None
    assert caplog.messages == []
    assert [containers.size(KEY) for _ in range(3)] == [None] * 3
    (said,) = caplog.messages
    assert all(words in said for words in (ID, str(tmp_path / "nowhere"), "--docker-root"))


def _link_of_the_record(record: Path) -> None:
    record.rename(record.with_name("else"))
    record.symlink_to("else")


def _link_of_the_folder(record: Path) -> None:
    record.parent.rename(record.parent.with_name("else"))
    record.parent.symlink_to("else")


def _folder(record: Path) -> None:
    record.unlink()
    record.mkdir()


def _fifo(record: Path) -> None:
    record.unlink()
    os.mkfifo(record)


def _with(content: bytes) -> Callable[[Path], object]:
    return lambda record: record.write_bytes(content)


def _huge(record: Path) -> None:
    with record.open("r+b") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "spoil",
    [
        _link_of_the_record,
        _link_of_the_folder,
        _folder,
        _fifo,
        _huge,
        _with(b""),
        _with(b'{"StorageOpt":{"size":"1G"}'),
        _with(b"\xff\xfe"),
        _with(b"[]"),
        _with(b"[" * 100_000),
        _with(b'{"StorageOpt":["size=1G"]}'),
        _with(json.dumps({"StorageOpt": {"size": 1}}).encode()),
    ],
)
def test_a_record_that_is_none_is_logged_and_ignored(
    tmp_path: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(record_container(tmp_path, KEY, {"size": "1G"}))
    before = len(os.listdir("/proc/self/fd"))
    assert DockerContainers(tmp_path).size(KEY) is None
    assert len(os.listdir("/proc/self/fd")) == before
    (said,) = caplog.messages
    assert said.startswith(f"cannot read the size of dockerd's container {ID}: ")
