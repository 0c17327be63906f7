"""What -v and -vv show of a command on its way to the kernel, and what a wait for a lock says."""

import json
import os
import re
from collections.abc import Iterator

import pytest

from dmthin.store.store import Store
from tests.support import processes
from tests.support.command import Command, Ran


def trace(ran: Ran) -> list[str]:
    """The lines of a trace, durations left out."""
    lines = [line.removeprefix("dmthin: ") for line in ran.err.splitlines()]
    return [re.sub(r" \(\d+\.\d\d ms\)$", "", line) for line in lines]


def in_order(lines: list[str], *patterns: str) -> None:
    """Each pattern is that of a whole line, and their lines come in this order."""
    left = iter(lines)
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in left), f"no {pattern!r} in its place in: {lines}"


def test_steps_of_a_container_from_the_ledger_to_the_device(dmthin: Command, store: Store, image: str) -> None:
    ran = dmthin.ok("-v", "container", "create", image, "web")
    record, web = store.ledger.store(), store.ledger.ready("web")
    parent = store.ledger.ready(image).device_id
    assert [line for line in trace(ran) if line.startswith("step: ")] == [
        "step: ledger begin make web",
        "step: ledger commit make web",
        "step: ledger sync make web",
        f"step: dm message {record.pool_name} create_snap {web.device_id} {parent}",
        "step: ledger begin made web",
        "step: ledger commit made web",
        "step: ledger sync made web",
        *(f"step: dm {verb} {record.device_name(web.device_id)}" for verb in ("create", "load", "resume")),
    ]
    assert not [line for line in trace(ran) if line.startswith(("ioctl: ", "lock: "))]
    durations = re.findall(r" \((\d+\.\d\d) ms\)$", ran.err, re.MULTILINE)
    assert len(durations) == 10


def test_the_way_of_a_container_to_each_ioctl(dmthin: Command, store: Store, image: str) -> None:
    ran = dmthin.ok("-vv", "container", "create", image, "web")
    record, web = store.ledger.store(), store.ledger.ready("web")
    pool, device = record.pool_name, record.device_name(web.device_id)
    in_order(
        trace(ran),
        r"lock: the lock of volume \d+, shared",
        "lock: the pool lock, shared",
        f"ioctl: DM_DEV_STATUS {pool}",
        f"ioctl: DM_TABLE_STATUS {pool} flags=0x800",
        "step: ledger begin make web",
        f"lock: the lock of volume {web.device_id}",
        "step: ledger commit make web",
        "step: ledger sync make web",
        f"ioctl: DM_TARGET_MSG {pool}",
        f"step: dm message {pool} create_snap .*",
        f"ioctl: DM_TABLE_STATUS {pool} flags=0x800",
        "step: ledger begin made web",
        "step: ledger commit made web",
        f"ioctl: DM_DEV_CREATE {device}",
        f"step: dm create {device}",
        f"ioctl: DM_TABLE_LOAD {device}",
        f"step: dm load {device}",
        f"ioctl: DM_DEV_SUSPEND {device}",
        f"step: dm resume {device}",
    )


def test_an_ioctl_that_fails_gives_its_errno(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    device = store.ledger.store().device_name(store.ledger.ready("web").device_id)
    dmthin.ok("container", "unmount", "web")
    assert f"ioctl: DM_DEV_STATUS {device} failed: ENXIO" in trace(dmthin.ok("-vv", "container", "mount", "web"))
    dmthin.ok("container", "unmount", "web")


def test_a_suspend_and_its_resume_are_shown(dmthin: Command, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    ran = dmthin.ok("-v", "container", "commit", "web", "other")
    in_order(
        trace(ran),
        r"step: guard start dmthin-.*",
        r"step: guard suspend dmthin-.*",
        r"step: dm message .* create_snap .*",
        r"step: guard resume dmthin-.*",
        "step: ledger commit made other",
    )
    dmthin.ok("container", "unmount", "web")


def test_programs_and_steps_are_objects_in_json(dmthin: Command, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    ran = dmthin.ok("--json", "-v", "container", "resize", "web", "+64M")
    logged = [json.loads(line)["log"] for line in ran.err.splitlines()]
    assert any(line.startswith("run: resize2fs ") for line in logged)
    assert any(line.startswith("step: grow file system ") for line in logged)


def test_nothing_is_traced_unless_it_is_asked_for(dmthin: Command, image: str) -> None:
    dmthin.ok("-vv", "container", "create", image, "web")
    assert trace(dmthin.ok("container", "create", image, "other")) == ["created other: 256M, a snapshot of image"]


@pytest.fixture
def holder(store: Store) -> Iterator[int]:
    """A process that holds the pool lock exclusively; its pid."""
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()

    def hold() -> None:
        os.close(end_write)
        with store.locks.own_pool():
            os.write(ready_write, b"x")
            os.read(end_read, 1)

    with processes.child(hold) as pid:
        os.close(end_read)
        assert os.read(ready_read, 1) == b"x"
        yield pid
        os.close(end_write)
    os.close(ready_read)
    os.close(ready_write)


def test_a_wait_for_a_lock_ends_at_the_limit(
    dmthin: Command, image: str, holder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = rf"waited 0\.01 s for the pool lock, held by \S+ \(pid {holder}\): .*--lock-timeout"
    assert re.fullmatch(said, dmthin.fails(11, "container", "create", image, "web", "--lock-timeout", "0.01"))
    monkeypatch.setenv("DMTHIN_LOCK_TIMEOUT", "0.01")
    assert re.fullmatch(said, dmthin.fails(11, "container", "create", image, "web"))
    assert re.match(r"waited 0 s for", dmthin.fails(11, "--lock-timeout=0", "pool", "trim"))
