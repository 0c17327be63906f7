"""Every sort of bad input to the `dmthin` command: one clear line, and nothing has changed."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from dmthin.cli import main
from dmthin.kernel import loop, mount
from dmthin.store.state.schema import SCHEMA_VERSION
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from tests.support.command import COMMAND, Command, picture
from tests.support.processes import NOBODY, error_output

BAD = [
    (2, "list --storage-opt dm.basesise=10G", r"unknown storage option 'dm\.basesise': did you mean dm\.basesize\?"),
    (2, "list --storage-opt dm.thinp_percent=95", r"dm\.thinp_percent has no effect without dm\.directlvm_device: .*"),
    (2, "list --storage-opt dm.blocksize=128K", r"dm\.blocksize=128K differs from the 64K of this store: .*"),
    (2, "list --storage-opt dm.basesize=1M", r"1M is too small for ext4: give at least 16M"),
    (2, "list --storage-opt dm.basesize=128M", r"dm\.basesize=128M is less than this store's 256M: it only grows"),
    (2, "list -o nonsense", r"unknown field 'nonsense': choose from name, .*"),
    (2, "container resize web big", r"size: 'big' is not a size: .*"),
    (2, "container resize web 20%", r"size: '20%' is not a size: sizes can only grow; .*"),
    (2, "container resize web 1M", r"the container web has 256M and cannot shrink to 1M: a volume only grows"),
    (2, "container create image new --storage-opt size=many", r"size: 'many' is not a size: .*"),
    (2, "container create image new --storage-opt size=1M", r"size 1M is less than the 256M of the image image: .*"),
    (2, "container mount web /etc/passwd", r"/etc/passwd is not a folder: choose another one"),
    (2, "container create image new --storage-opt size=17T", r"17T is too large for ext4: give at most 16T"),
    (2, "container resize web 17T", r"17T is too large for ext4: give at most 16T"),
    (2, "container create image new --storage-opt sise=1G", r"unknown storage option 'sise'.*"),
    (2, "container create image a/b", r"invalid container name 'a/b': .*"),
    (2, "image import @x {tree}", r"invalid image name '@x': .*"),
    (2, "pool extend", r"nothing to extend: pass --data-size, --metadata-size or both"),
    (2, "pool extend --data-size 1G", r"the pool's data has 4G and cannot shrink to 1G: a thin pool only grows"),
    (2, "pool extend --data-size 20000P", r".*'20000P' is more than any device can have: give a size below 8192P"),
    (2, "pool extend --metadata-size 100G", r"the kernel uses no more than 15\.9G of metadata: give at most 15G"),
    (2, "pool destroy", r"confirmation required: the store .* 1 base, 1 image, 1 container; .*: pass --yes .*"),
    (2, "image import new {corrupt}", r".*corrupt\.tar.*"),
    (2, "image import new {cut}", r".*cut\.tar\.gz.*"),
    (3, "image import new /nowhere", r"/nowhere does not exist: .*"),
    (3, "container create nothing new", r"there is no image 'nothing': see: dmthin list"),
    (3, "container create web new", r"'web' is a container, not an image: see: dmthin list"),
    (3, "container mount nothing", r"there is no container 'nothing': see: dmthin list"),
    (3, "inspect web nothing", r"there is no volume 'nothing': see: dmthin list"),
    (3, "image remove web", r"'web' is a container, not an image: see: dmthin list"),
    (4, "container create image web", r"the name 'web' is in use by a container: choose another"),
    (4, "container commit web image", r"the name 'image' is in use by an image: choose another"),
    (4, "image import image {tree}", r"the name 'image' is in use by an image: choose another"),
    (4, "pool create", r".* is a store already: see: dmthin pool status"),
    (5, "image remove image", r"the image image has children: web: remove those first"),
    (5, "container remove web", r"the container web is mounted at .*/mnt/web: run: dmthin container unmount web, .*"),
    (5, "container mount web /proc", r"something else is mounted at /proc: choose another folder"),
    (5, "pool deactivate", r"the container web is in use by .*: unmount it, or stop that, first"),
    (5, "pool destroy --yes", r"the container web is in use by .*: unmount it, or stop that, first"),
    (6, "image import new {big}", r".*big\.tar does not fit into an image of 256M: .*: give a larger --storage-opt .*"),
]


def bad_archives(scratch: Path) -> dict[str, Path]:
    """One that is no archive, and one that is truncated."""
    corrupt, cut = scratch / "corrupt.tar", scratch / "cut.tar.gz"
    corrupt.write_bytes(b"no tar at all\n" * 1000)
    subprocess.run(["tar", "-czf", cut, "-C", "/usr/bin", "perl"], check=True)
    os.truncate(cut, cut.stat().st_size // 2)
    return {"corrupt": corrupt, "cut": cut}


def test_bad_input_gets_one_clear_line_and_changes_nothing(
    dmthin: Command, store: Store, image: str, tree: Path, scratch: Path, big_tar: Path
) -> None:
    places = bad_archives(scratch) | {"tree": tree, "big": big_tar}
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    before = picture(store)
    for status, line, message in BAD:
        words = dmthin.fails(status, *line.format(**places).split())
        assert re.fullmatch(message, words), (line, words)
        assert picture(store) == before, line
        quiet = dmthin(*line.format(**places).split(), "--json") if status != 6 else None
        if quiet:
            assert json.loads(quiet.err)["error"]["exit_code"] == status


CONFIRMED = "pool destroy"
"""Asks for a confirmation, which a dry run need not have: it fails as the confirmed verb does."""


def test_a_dry_run_fails_as_the_change_does(
    dmthin: Command, store: Store, image: str, tree: Path, scratch: Path, big_tar: Path
) -> None:
    places = bad_archives(scratch) | {"tree": tree, "big": big_tar}
    dmthin.ok("container", "create", image, "web")
    dmthin.ok("container", "mount", "web")
    before = picture(store)
    for status, line, message in BAD:
        if line == CONFIRMED:
            continue
        words = dmthin.fails(status, *line.format(**places).split(), "--dry-run")
        assert re.fullmatch(message, words), (line, words)
        assert picture(store) == before, line


def test_a_folder_that_is_no_store(capsys: pytest.CaptureFixture[str], scratch: Path) -> None:
    no_store = Command(scratch, capsys)
    assert no_store.fails(3, "list") == f"{scratch} is not a store: make one with: dmthin pool create"
    with closing(sqlite3.connect(scratch / "ledger.db")) as other:
        other.execute("CREATE TABLE somebody_elses (x)")
    assert no_store.fails(3, "pool", "status").startswith(f"{scratch}/ledger.db is not a ledger of dmthin")
    (scratch / "ledger.db").unlink()
    (scratch / "data").touch()
    assert no_store.fails(4, "pool", "create").startswith(f"{scratch}/data exists already")
    assert [path.name for path in scratch.iterdir()] == ["data"]


def test_a_store_of_a_newer_dmthin(dmthin: Command, store: Store) -> None:
    with closing(sqlite3.connect(store.layout.ledger)) as ledger:
        (version,) = ledger.execute("PRAGMA user_version").fetchone()
        ledger.execute("PRAGMA user_version = 99")
        try:
            for words in (["list"], ["pool", "status"], ["pool", "destroy", "--yes"]):
                assert dmthin.fails(9, *words).endswith(f"(schema 99, this one knows {SCHEMA_VERSION}): upgrade dmthin")
        finally:
            ledger.execute(f"PRAGMA user_version = {version}")


def test_a_full_host_disk_at_creation(fresh: Command) -> None:
    fresh.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(fresh.root)], check=True)
    try:
        assert fresh.fails(6, "pool", "create").startswith(f"the file system of {fresh.root} has only ")
        assert list(fresh.root.iterdir()) == []
    finally:
        mount.unmount(fresh.root)


def test_a_pool_that_another_store_holds(
    dmthin: Command, store: Store, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, second = store.pool.status().name, Command(scratch / "second", capsys)
    words = second.fails(5, "pool", "create", "--storage-opt", f"dm.thinpooldev={name}")
    assert words.startswith(f"the pool {name} is in use by another store or program")
    assert not second.root.exists()
    dmthin.ok("pool", "deactivate")
    store.ledger.close()
    shutil.copytree(store.layout.root, second.root, ignore=shutil.ignore_patterns("data", "mnt"))
    with (second.root / "data").open("wb") as data:
        data.truncate(4 * GIB)
    dmthin.ok("pool", "activate")
    words = second.fails(4, "pool", "activate")
    assert words.startswith(f"the pool {name} is held by another store, on {store.layout.root}/data")


def test_devices_that_carry_data_are_refused_until_confirmed(fresh: Command, scratch: Path) -> None:
    devices = {}
    for name, size in (("data", 256 * MIB), ("metadata", 16 * MIB)):
        with (scratch / name).open("wb") as file:
            file.truncate(size)
        devices[name] = loop.attach(scratch / name)
    try:
        subprocess.run(["mkfs.ext4", "-q", devices["data"].node], check=True)
        options = [
            *("--storage-opt", f"dm.datadev={devices['data'].node}"),
            *("--storage-opt", f"dm.metadatadev={devices['metadata'].node}"),
        ]
        carries = f"{devices['data'].node} carries data (ext4)"
        assert fresh.fails(4, "pool", "create", *options) == f"{carries}: give --force to overwrite it"
        words = fresh.fails(2, "pool", "create", "--force", *options)
        assert words == f"confirmation required: {carries}, which would be overwritten: pass --yes to confirm"
        assert not fresh.root.exists()
        fresh.ok("pool", "create", "--force", "--yes", *options)
        assert fresh.fails(2, "pool", "extend", "--data-size", "1G").startswith(f"{devices['data'].node} has only 256M")
        assert fresh.ok("pool", "extend").err == "data: 256M (unchanged)\nmetadata: 16M (unchanged)\n"
        os.truncate(scratch / "data", 512 * MIB)
        devices["data"].refresh_size()
        assert fresh.ok("pool", "extend").err == "data: 256M -> 512M\nmetadata: 16M (unchanged)\n"
        assert fresh.ok("--json", "pool", "trim").json == {"reclaimed": None}
        assert f"the content of its devices: {devices['data'].node}" in fresh.fails(2, "pool", "destroy")
        fresh.ok("pool", "destroy", "--yes")
    finally:
        for device in devices.values():
            device.detach()


def test_without_rights(dmthin: Command, store: Store) -> None:
    dmthin.ok("list")
    for words in (["list"], ["container", "mount", "web"], ["pool", "create"]):

        def call_as_nobody(words: list[str]) -> None:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(main(["--root", str(store.layout.root), *words]))

        status, said = error_output(partial(call_as_nobody, words))
        assert status == 8, said
        assert re.fullmatch(r"dmthin: .*: run this as root\n", said)


def test_a_folder_of_devices_without_device_mapper(scratch: Path) -> None:
    """Its control node is hidden by a mount that only the command sees, and where no other can be made."""
    hide = 'mount -t tmpfs -o ro none /dev/mapper && exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", hide, "sh", *COMMAND, "--root", str(scratch / "new"), "pool", "create"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    said = "/dev/mapper/control is missing, though this kernel has device-mapper"
    assert done.stderr == f"dmthin: {said}: mount devtmpfs on /dev, or run: dmsetup mknodes\n"
    assert not (scratch / "new").exists()


def test_a_size_out_of_proportion_is_confirmed(dmthin: Command, store: Store, image: str) -> None:
    dmthin.ok("container", "create", image, "web")
    before = picture(store)
    asked = "confirmation required: {} would have 512G, 128 times the 4G of the pool: pass --yes to confirm"
    assert dmthin.fails(2, "container", "resize", "web", "512G") == asked.format("web")
    for words in (["container", "create", image, "new"], ["image", "import", "new", "/nowhere"]):
        assert dmthin.fails(2, *words, "--storage-opt", "size=512G") == asked.format("new")
    assert dmthin.fails(2, "container", "resize", "web", "17T").startswith("17T is too large for ext4")
    assert picture(store) == before
    dmthin.ok("container", "resize", "web", "512G", "--dry-run")
    assert picture(store) == before
