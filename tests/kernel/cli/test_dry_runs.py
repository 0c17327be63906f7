"""Dry runs of the `dmthin` command: they change nothing, fail as the change would, and can be pasted."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from dmthin.kernel import loop
from dmthin.kernel.dmioctl import IoctlDeviceMapper
from dmthin.kernel.thin import PoolStatus
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support.command import SMALL_OPTIONS, Command, paste, picture

CHANGES = [
    "pool extend --data-size +1G --metadata-size +20%",
    "pool destroy",
    "image import new {tree}",
    "image import new - --storage-opt size=300M",
    "image remove spare",
    "container create image new",
    "container create image new --storage-opt size=1G",
    "container mount idle",
    "container mount idle /mnt/elsewhere",
    "container unmount web",
    "container resize web +1G",
    "container resize idle +1G",
    "container commit web new",
    "container remove idle",
]


def test_a_dry_run_changes_nothing(dmthin: Command, store: Store, image: str, tree: Path) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "create", image, "idle")
    dmthin.ok("container", "commit", "idle", "spare")
    dmthin.ok("container", "mount", "web")
    before = picture(store)
    for change in CHANGES:
        if change == "pool destroy":
            assert dmthin.fails(5, "pool", "destroy", "--dry-run").startswith("the container web is in use")
            continue
        plan = dmthin.ok(*change.format(tree=tree).split(), "--dry-run")
        commands = [line for line in plan.out.splitlines() if not line.startswith("#")]
        assert commands, change
        assert dmthin.ok("--json", *change.format(tree=tree).split(), "--dry-run").json["plan"] == commands
        assert {line.split()[0] for line in commands} <= {
            *("dmsetup", "truncate", "losetup", "mount", "umount", "mkdir", "mkfs.ext4"),
            *("resize2fs", "cp", "tar", "blkdiscard"),
        }
    assert dmthin.fails(2, "pool", "trim", "--dry-run").startswith("pool trim cannot be shown as commands")
    assert picture(store) == before


def test_a_dry_run_fails_as_the_change_would(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    for status, change in (
        (4, "container create image web"),
        (3, "container create nothing new"),
        (2, "container create image new --storage-opt size=1M"),
        (2, "container create image a/b"),
        (5, "container remove web"),
        (2, "container remove --force web"),
        (2, "container resize web 1M"),
        (5, "image remove image"),
        (4, "image import image /"),
        (3, "image import new /nowhere"),
        (2, "pool extend --data-size 1G"),
        (5, "pool deactivate"),
    ):
        planned = dmthin.fails(status, *change.split(), "--dry-run")
        if "--force" not in change:
            assert planned.split(":")[0] == dmthin.fails(status, *change.split()).split(":")[0]


def test_a_plan_names_what_the_change_then_makes(dmthin: Command, store: Store, image: str, tree: Path) -> None:
    """Also once something has been removed: device ids are not used again."""
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "create", image, "gone")
    dmthin.ok("container", "remove", "gone")
    dmthin.ok("container", "mount", "web")
    for change, name in (
        ("image import one {tree}", "one"),
        ("image import other {tree} --storage-opt size=300M", "other"),
        ("container create image new", "new"),
        ("container create image larger --storage-opt size=512M", "larger"),
        ("container commit web committed", "committed"),
        ("container resize new +128M", "new"),
    ):
        words = change.format(tree=tree).split()
        known = {volume.device_id for volume in store.ledger.volumes()}
        plan = dmthin.ok(*words, "--dry-run").out
        assert {volume.device_id for volume in store.ledger.volumes()} == known, change
        dmthin.ok(*words)
        volume = store.ledger.ready(name)
        made = {volume.device_id for volume in store.ledger.volumes()} - known
        messages = {int(number) for number in re.findall(r"'create_(?:thin|snap) (\d+)", plan)}
        assert messages == made, change
        tables = re.findall(r"0 (\d+) thin \S+ (\d+)", plan)
        if tables:
            assert (str(volume.size // 512), str(volume.device_id)) == tables[-1], change
    for name in ("new", "larger"):
        number = store.ledger.ready(name).device_id
        plan = dmthin.ok("container", "remove", name, "--dry-run").out
        assert f"'delete {number}'" in plan
        dmthin.ok("container", "remove", name)
        assert store.ledger.by_id(number) is None


def test_the_plan_of_an_images_removal_names_its_base_too(dmthin: Command, store: Store, image: str) -> None:
    ids = {volume.device_id for volume in store.ledger.volumes()}
    assert len(ids) == 2
    plan = dmthin.ok("image", "remove", image, "--dry-run").out
    assert {int(number) for number in re.findall(r"'delete (\d+)'", plan)} == ids
    dmthin.ok("image", "remove", image)
    assert store.ledger.volumes() == []


def test_the_plan_of_a_stores_end_can_be_pasted(fresh: Command, tree: Path) -> None:
    fresh.ok("pool", "create", *SMALL_OPTIONS)
    fresh.ok("image", "import", "image", str(tree))
    paste(fresh.ok("pool", "destroy", "--dry-run").out)
    assert not fresh.root.exists()


def test_the_plan_of_a_pool_can_be_pasted(fresh: Command) -> None:
    plan = fresh.ok("pool", "create", *SMALL_OPTIONS, "--dry-run").out
    assert not fresh.root.exists()
    fresh.root.mkdir()
    paste(plan)
    name = re.findall(r"dmsetup create (\S+)", plan)[0]
    with IoctlDeviceMapper() as dm:
        assert PoolStatus.parse(dm.status(name)).data_total_blocks == 4 * GIB // (64 << 10)
    paste(f"dmsetup remove {name}")
    for file in ("data", "metadata"):
        device = loop.find(fresh.root / file)
        assert device is not None
        device.detach()


def test_the_plans_of_growth_and_shutdown_can_be_pasted(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    paste(dmthin.ok("pool", "extend", "--data-size", "+1G", "--metadata-size", "128M", "--dry-run").out)
    now = store.pool.status()
    assert (now.data_size, now.metadata_size) == (5 * GIB, 128 * MIB)
    paste(dmthin.ok("container", "unmount", "web", "--dry-run").out)
    assert dmthin.ok("ls", "-H", "-o", "state").out.split() == ["inactive"] * 3
    paste(dmthin.ok("container", "mount", "web", "--dry-run").out)
    assert (store.layout.mount_point("web") / "etc/motd").read_text() == "hello\n"
    dmthin.ok("container", "unmount", "web")
    paste(dmthin.ok("pool", "deactivate", "--dry-run").out)
    assert dmthin.ok("--json", "pool", "status").json["pool"]["mode"] == "inactive"
    paste(dmthin.ok("pool", "activate", "--dry-run").out)
    assert dmthin.ok("pool", "activate", "--dry-run").out == "# the pool is active already\n"
    assert (store.containers.mount("web") / "etc/motd").read_text() == "hello\n"


@pytest.mark.parametrize(
    "change",
    ["image import new {tree}", "container create image new --storage-opt size=512M", "container commit web new"],
)
def test_the_plan_of_a_volume_can_be_pasted(dmthin: Command, store: Store, image: str, tree: Path, change: str) -> None:
    dmthin.ok("container", "create", image, "web")
    store.containers.mount("web")
    number = len(store.ledger.volumes())
    paste(dmthin.ok(*change.format(tree=tree).split(), "--dry-run").out)
    record = store.ledger.store()
    with suppress(subprocess.CalledProcessError):
        paste(f"dmsetup remove {record.device_name(number)}")
    paste(f"dmsetup message {record.pool_name} 0 'delete {number}'")
    work = store.layout.work_point(number)
    if work.exists():
        work.rmdir()
