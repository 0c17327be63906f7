"""Loop devices on the real driver: by LOOP_CONFIGURE and by the older pair."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dmthin.errors import KernelError, NotFound, TimeLimit, Unavailable
from dmthin.kernel import block, loop, mount
from dmthin.kernel.loop import LoopDevice
from dmthin.units import MIB
from enginelib.waiting import PATIENCE
from tests.support import loop_module, processes, rigs


@pytest.fixture(params=["configure", "pair"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to bind: an ioctl that this kernel does not know stands for LOOP_CONFIGURE on one before 5.8."""
    if request.param == "pair":
        monkeypatch.setattr(loop, "_CONFIGURE", 0x4CFF)


@pytest.fixture
def file(scratch: Path) -> Path:
    path = scratch / "backing"
    block.make_sparse(path, 8 * MIB)
    return path


@pytest.fixture
def tmpfs(scratch: Path) -> Iterator[Path]:
    folder = scratch / "tmpfs"
    folder.mkdir()
    mount.mount("tmpfs", folder, "tmpfs")
    yield folder
    mount.unmount(folder)


@pytest.mark.usefixtures("_way")
def test_attach_with_direct_io(file: Path) -> None:
    device = loop.attach(file)
    try:
        assert device.direct_io
        assert device.backing_file == str(file)
        assert block.size(Path(device.node)) == 8 * MIB
        rigs.write_block(Path(device.node), 3, rigs.pattern(1, 3))
        assert rigs.read_block(file, 3) == rigs.pattern(1, 3)
    finally:
        device.detach()
    assert device.backing_file == ""


@pytest.mark.usefixtures("_way")
def test_the_page_cache_will_do_on_tmpfs(tmpfs: Path) -> None:
    block.make_sparse(tmpfs / "backing", MIB)
    device = loop.attach(tmpfs / "backing")
    try:
        assert not device.direct_io
        rigs.write_block(Path(device.node), 0, rigs.pattern(1, 0))
        assert block.read(tmpfs / "backing", rigs.BLOCK) == rigs.pattern(1, 0)
    finally:
        device.detach()


@pytest.mark.usefixtures("_way")
def test_attach_read_only(file: Path) -> None:
    device = loop.attach(file, read_only=True)
    try:
        with block.opened(Path(device.node), os.O_RDWR) as fd, pytest.raises(PermissionError):
            os.pwrite(fd, bytes(4096), 0)
        assert loop.find(file) == device
    finally:
        device.detach()


@pytest.mark.usefixtures("_way")
def test_a_name_longer_than_the_kernel_keeps(scratch: Path) -> None:
    path = scratch / ("n" * 200) / ("m" * 200)
    path.parent.mkdir()
    block.make_sparse(path, MIB)
    device = loop.attach(path)
    try:
        assert device.backing_file == str(path)
        assert loop.find(path) == device
    finally:
        device.detach()


@pytest.mark.usefixtures("_way")
def test_a_loop_is_found_by_its_file_whatever_the_name(file: Path, scratch: Path) -> None:
    other = scratch / "other"
    block.make_sparse(other, MIB)
    device = loop.attach(file)
    try:
        file.rename(scratch / "renamed")
        other.rename(file)
        assert loop.find(file) is None
        assert loop.find(scratch / "renamed") == device
        assert device.backing_file == str(scratch / "renamed")
        (scratch / "link").hardlink_to(scratch / "renamed")
        assert loop.find(scratch / "link") == device
        assert loop.find(scratch / "nothing") is None
        number = f"7:{device.index}"
        assert loop.is_at(scratch / "link", number)
        assert not loop.is_at(file, number)
        assert not loop.is_at(scratch / "nothing", number)
        assert not loop.is_at(scratch / "link", f"8:{device.index}")
        assert not loop.is_at(scratch / "link", "7:300")
    finally:
        device.detach()


def test_a_grown_file_shows_after_a_refresh(file: Path) -> None:
    device = loop.attach(file)
    try:
        block.grow_sparse(file, 16 * MIB)
        assert block.size(Path(device.node)) == 8 * MIB
        device.refresh_size()
        assert block.size(Path(device.node)) == 16 * MIB
        block.grow_sparse(file, 4 * MIB)
        assert file.stat().st_size == 16 * MIB, "a file never gets smaller"
    finally:
        device.detach()


def test_a_loop_in_use_goes_with_its_last_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_DETACH_SECONDS", 0.05)
    device = loop.attach(file)
    with block.opened(Path(device.node)), pytest.raises(TimeLimit, match=device.node):
        device.detach()
    assert loop.find(file) is None


def test_detach_waits_for_a_user_who_is_about_to_go(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user closes it once the detach has seen that it is still bound."""
    monkeypatch.setattr(loop, "_DETACH_SECONDS", PATIENCE)
    device = loop.attach(file)
    users = [os.open(device.node, os.O_RDONLY)]
    is_bound = LoopDevice._is_bound
    seen: list[bool] = []

    def look_and_close(device: LoopDevice) -> bool:
        seen.append(is_bound(device))
        if users:
            os.close(users.pop())
        return seen[-1]

    monkeypatch.setattr(LoopDevice, "_is_bound", look_and_close)
    device.detach()
    assert seen[0]
    assert not seen[-1]
    assert loop.find(file) is None


def test_detach_twice(file: Path) -> None:
    device = loop.attach(file)
    device.detach()
    device.detach()
    assert loop.find(file) is None


def test_detach_leaves_a_number_that_has_another_file_now(file: Path, scratch: Path) -> None:
    stale = loop.attach(file)
    stale.detach()
    other = scratch / "other"
    block.make_sparse(other, MIB)
    device = loop.attach(other)
    try:
        assert device.index == stale.index
        stale.detach()
        assert loop.find(other) == device
    finally:
        device.detach()


def test_detach_ends_when_another_takes_the_number_at_once(
    file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is free the moment the ioctl is through; whoever takes it then is none of ours."""
    other = scratch / "other"
    block.make_sparse(other, MIB)
    taken: list[LoopDevice] = []
    attribute = loop._attribute

    def take_first(index: int, name: str) -> str | None:
        monkeypatch.setattr(loop, "_attribute", attribute)
        taken.append(loop.attach(other))
        return attribute(index, name)

    device = loop.attach(file)
    monkeypatch.setattr(loop, "_attribute", take_first)
    device.detach()
    assert [stolen.index for stolen in taken] == [device.index]
    taken[0].detach()


@pytest.mark.usefixtures("_way")
def test_eight_processes_get_eight_loops(scratch: Path) -> None:
    for number in range(8):
        block.make_sparse(scratch / f"file-{number}", MIB)
    start_read, start_write = os.pipe()

    def attach_with_the_others(path: Path) -> None:
        """Attach once all are ready, and end: the loop stays, for autoclear is off."""
        os.close(start_write)
        os.read(start_read, 1)
        loop.attach(path)

    children = [processes.start(partial(attach_with_the_others, scratch / f"file-{number}")) for number in range(8)]
    os.close(start_read)
    os.close(start_write)
    assert [processes.outcome(pid) for pid in children] == [0] * 8
    found = [loop.find(scratch / f"file-{number}") for number in range(8)]
    devices = [device for device in found if device]
    try:
        assert len({device.index for device in devices}) == 8
        assert [Path(device.backing_file).name for device in devices] == [f"file-{number}" for number in range(8)]
    finally:
        for device in devices:
            device.detach()


@pytest.mark.usefixtures("_way")
def test_a_loop_stolen_in_between_is_retried(file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scratch / "other"
    block.make_sparse(other, MIB)
    thief = loop.attach(other)
    free, answers = loop._free_index, [thief.index, thief.index]
    monkeypatch.setattr(loop, "_free_index", lambda: answers.pop() if answers else free())
    try:
        device = loop.attach(file)
        assert device.index != thief.index
        assert loop.find(other) == thief
        device.detach()
    finally:
        thief.detach()


def test_no_loop_to_be_had(file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scratch / "other"
    block.make_sparse(other, MIB)
    thief = loop.attach(other)
    monkeypatch.setattr(loop, "_free_index", lambda: thief.index)
    try:
        with pytest.raises(Unavailable, match="no free loop device"):
            loop.attach(file)
    finally:
        thief.detach()


@pytest.mark.usefixtures("_way")
def test_what_cannot_be_attached(scratch: Path) -> None:
    with pytest.raises(NotFound, match="missing"):
        loop.attach(scratch / "missing")
    with pytest.raises(KernelError, match=str(scratch)):
        loop.attach(scratch)
    with pytest.raises(KernelError, match="/dev/null"):
        loop.attach(Path("/dev/null"))
    assert loop.bound() == []


def test_the_pair_releases_the_loop_when_its_second_half_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONFIGURE", 0x4CFF)
    monkeypatch.setattr(loop, "_SET_STATUS64", 0x4CFE)
    with pytest.raises(KernelError, match="name the loop"):
        loop.attach(file)
    assert loop.bound() == []


def test_a_missing_node_is_made(file: Path) -> None:
    """A container may have a /dev of its own."""
    device = loop.attach(file)
    Path(device.node).unlink()
    assert loop.find(file) == device
    assert Path(device.node).is_block_device()
    device.detach()


def test_a_loop_that_may_have_partitions(file: Path) -> None:
    """With the module's parameter max_part the minors between those of loops are partitions'."""
    with loop_module.loaded_with("max_part=15"):
        other = file.with_name("other")
        block.make_sparse(other, MIB)
        first = loop.attach(other)
        device = loop.attach(file)
        try:
            assert (first.number, device.number) == ("7:0", "7:16")
            assert block.number(Path(device.node)) == device.number
            assert loop.find(file) == device
            assert loop.is_at(file, "7:16")
            assert not loop.is_at(file, "7:1")
        finally:
            device.detach()
            first.detach()
