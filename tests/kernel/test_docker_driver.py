"""The graphdriver's calls on a real pool, without HTTP: Init and its options, repeated calls, restarts, clean-up."""

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmthin.docker.driver import Driver
from dmthin.docker.protocol import InitRequest, LayerRequest
from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue, NoDataSpace, NotFound, Unavailable
from dmthin.kernel import mount
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.units import GIB, MIB
from enginelib.waiting import until
from tests.support.stores import SMALL, fill, take_down

Init = Callable[..., None]
IDS = ((0, 100000, 65536),)


@pytest.fixture
def home(scratch: Path) -> Path:
    return scratch / "docker" / "dmthin"


@pytest.fixture
def make_driver(scratch: Path, home: Path) -> Iterator[Callable[[], Driver]]:
    """Drivers that remember in one place; their store is taken down in the end."""
    with ExitStack() as stack:

        def make() -> Driver:
            driver = Driver(scratch / "run" / "docker.json")
            stack.callback(driver.close)
            return driver

        yield make
    if (home / "ledger.db").exists():
        take_down(Store(home))


@pytest.fixture
def driver(make_driver: Callable[[], Driver], home: Path) -> Driver:
    driver = make_driver()
    init(driver, home)
    return driver


def init(driver: Driver, home: Path, *options: str, ids: tuple[tuple[int, int, int], ...] = ()) -> None:
    driver.init(InitRequest(home, (*SMALL, *options), ids, ids))


def layer(name: str, parent: str = "", **more: str) -> LayerRequest:
    return LayerRequest(name, parent, options=tuple(f"{key}={value}" for key, value in more.items()))


def test_nothing_goes_before_init(make_driver: Callable[[], Driver]) -> None:
    with pytest.raises(Unavailable, match="restart"):
        make_driver().status()


def test_the_calls_of_a_container(driver: Driver) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    (Path(driver.get(layer("image"))) / "file").write_text("of the image")
    driver.put("image")
    driver.create(layer("m-init", "image"), Kind.CONTAINER)
    driver.get(layer("m-init"))
    driver.put("m-init")
    driver.create(layer("m", "m-init"), Kind.CONTAINER)
    place = Path(driver.get(layer("m")))
    assert (place / "file").read_text() == "of the image"
    assert os.fspath(place) == driver.get(layer("m"))
    driver.put("m")
    assert (place / "file").exists()
    driver.put("m")
    assert not place.exists()
    assert driver.exists("m")
    for name in ("m", "m-init", "image", "image", "never"):
        driver.remove(name)
    assert not driver.exists("m")
    until(lambda: [volume.kind for volume in driver.store.ledger.volumes()] == [Kind.BASE])


def test_what_is_repeated_is_done_once(driver: Driver) -> None:
    for _ in range(2):
        driver.create(layer("image"), Kind.IMAGE)
    for _ in range(2):
        driver.create(layer("m", "image", size="1000000001"), Kind.CONTAINER)
    with pytest.raises(AlreadyExists):
        driver.create(layer("m", "image", size="2G"), Kind.CONTAINER)
    with pytest.raises(AlreadyExists):
        driver.create(layer("m", "image"), Kind.IMAGE)
    with pytest.raises(AlreadyExists):
        driver.create(layer("image", "m"), Kind.IMAGE)
    with pytest.raises(NotFound):
        driver.create(layer("x", "nothing"), Kind.IMAGE)
    driver.put("m")
    driver.put("never")


def test_what_is_repeated_while_it_is_done_waits_for_it(driver: Driver) -> None:
    for name, parent in (("image", ""), ("m", "image")):
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(driver.create, layer(name, parent), Kind.IMAGE) for _ in range(8)]
        assert [call.result() for call in calls] == [None] * 8
    assert [volume.name for volume in driver.store.ledger.volumes()] == ["@base/ext4/256M", "image", "m"]


def test_storage_options_of_a_layer(driver: Driver) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    driver.create(layer("m-init", "image", SIZE="1G"), Kind.CONTAINER)
    driver.create(layer("m", "m-init", size="1g"), Kind.CONTAINER)
    driver.create(layer("zero", "m-init", size="0"), Kind.CONTAINER)
    figures = os.statvfs(driver.get(layer("m")))
    assert figures.f_blocks * figures.f_frsize > 900 * MIB
    driver.put("m")
    for key, value, words in (("size", "64M", "256M of"), ("siez", "1G", "only size="), ("size", "x", "size")):
        with pytest.raises(InvalidValue, match=words):
            driver.create(layer("y", "image", **{key: value}), Kind.CONTAINER)
    assert not driver.exists("y")
    assert driver.metadata("m") == {
        "DeviceId": str(driver.store.ledger.ready("m").device_id),
        "DeviceSize": str(GIB),
        "DeviceName": driver.store.ledger.store().device_name(driver.store.ledger.ready("m").device_id),
    }


def test_a_dmthin_that_was_killed_serves_on(driver: Driver, make_driver: Callable[[], Driver], home: Path) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    driver.get(layer("image"))
    again = make_driver()
    again.restore()
    assert again.store.layout.root == home
    place = Path(again.get(layer("image")))
    again.put("image")
    assert place.exists()
    again.put("image")
    assert not place.exists()


def test_a_new_dockerd_counts_from_what_it_finds(driver: Driver, home: Path) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    for _ in range(3):
        place = Path(driver.get(layer("image")))
    init(driver, home)
    driver.get(layer("image"))
    driver.put("image")
    assert place.exists()
    driver.put("image")
    assert not place.exists()


def test_cleanup_leaves_nothing_up_and_init_may_follow(driver: Driver, home: Path) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    place = Path(driver.get(layer("image")))
    driver.cleanup()
    assert not driver.store.pool.status().active
    assert mount.under(place) == []
    driver.cleanup()
    init(driver, home)
    assert driver.exists("image")


def test_cleanup_with_a_busy_layer_leaves_the_pool_up(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    with subprocess.Popen(["sleep", "100"], cwd=driver.get(layer("image"))) as process:
        driver.cleanup()
        assert "sleep (pid" in caplog.text
        process.kill()
    driver.maintain()
    driver.cleanup()
    assert not driver.store.pool.status().active


def test_options_of_a_later_start(driver: Driver, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    init(driver, home, "dm.basesize=512M", "dm.loopdatasize=5G", "dm.loopmetadatasize=32M", "dm.mountopt=nodev")
    assert driver.store.pool.status().data_size == 5 * GIB
    assert "dm.loopmetadatasize=32M is ignored: the pool has 64M" in caplog.text
    driver.create(layer("large"), Kind.IMAGE)
    assert driver.metadata("large")["DeviceSize"] == str(512 * MIB)
    with Store(home) as store:
        assert store.options.mount_options == "nodev", "the command line has dockerd's options too"
    with pytest.raises(InvalidValue, match=r"256M is less than this store's 512M"):
        init(driver, home)
    driver.init(InitRequest(home, ("dm.fs=xfs",), (), ()))
    assert "dm.fs=xfs is ignored: this store was created with ext4" in caplog.text
    assert (driver.store.options.base_size, driver.store.options.mount_options) == (512 * MIB, "")
    assert driver.store.options.file_system.name == "ext4"
    with pytest.raises(InvalidValue, match=r"dm.blocksize=128K differs"):
        driver.init(InitRequest(home, ("dm.blocksize=128K",), (), ()))
    with pytest.raises(InvalidValue, match=r"unknown storage option 'dm.nothing'"):
        driver.init(InitRequest(home, ("dm.nothing=1",), (), ()))
    driver.create(layer("again"), Kind.IMAGE)


def test_a_second_dockerd_is_told_to_have_its_own(driver: Driver, scratch: Path) -> None:
    driver.create(layer("image"), Kind.IMAGE)
    driver.get(layer("image"))
    with pytest.raises(InUse, match="dmthin serve --docker SOCKET"):
        init(driver, scratch / "other" / "dmthin")
    assert driver.exists("image")


def test_a_full_pool_refuses_layers_and_lets_things_be_removed(make_driver: Callable[[], Driver], home: Path) -> None:
    driver = make_driver()
    driver.init(InitRequest(home, ("dm.loopdatasize=238M", "dm.loopmetadatasize=16M", "dm.basesize=256M"), (), ()))
    driver.create(layer("image"), Kind.IMAGE)
    fill(Path(driver.get(layer("image"))) / "file", 200 * MIB)
    driver.put("image")
    with pytest.raises(NoDataSpace, match="less than 10%"):
        driver.create(layer("refused", "image"), Kind.CONTAINER)
    assert not driver.exists("refused")
    driver.init(InitRequest(home, (), (), ()))
    driver.remove("image")
    driver.create(layer("image"), Kind.IMAGE)


def test_ids_of_a_user_namespace(make_driver: Callable[[], Driver], home: Path) -> None:
    driver = make_driver()
    init(driver, home, ids=IDS)
    driver.create(layer("image"), Kind.IMAGE)
    place = Path(driver.get(layer("image")))
    assert (place.stat().st_uid, place.stat().st_gid) == (100000, 100000)
    assert home.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777 == 0o711
    again = make_driver()
    again.restore()
    assert again.id_ranges == (IDS, IDS)


def test_status_has_dockers_fields(driver: Driver) -> None:
    pairs = dict(driver.status())
    assert list(pairs)[:4] == ["Pool Name", "Pool Blocksize", "Base Device Size", "Backing Filesystem"]
    assert pairs["Pool Blocksize"] == "65.54kB"
    assert pairs["Base Device Size"] == "268.4MB"
    assert pairs["Data Space Total"] == "4.295GB"
    assert pairs["Data loop file"].endswith("/dmthin/data")
    assert pairs["Data file"].startswith("/dev/loop")
    assert (pairs["Pool Mode"], pairs["Pool Needs Check"]) == ("rw", "false")
    driver.cleanup()
    assert dict(driver.status())["Pool Mode"] == "inactive"


def test_a_home_that_cannot_be_is_an_error(make_driver: Callable[[], Driver], scratch: Path) -> None:
    (scratch / "file").write_text("")
    with pytest.raises(DmthinError, match="not a folder"):
        init(make_driver(), scratch / "file")
