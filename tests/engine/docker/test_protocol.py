"""The plugin protocol on its socket, spoken directly: what dockerd sends on bad days."""

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmthin.kernel import mount
from enginelib.daemons import SCRATCH, tar_of, traces
from enginelib.docker import Docker, Plugin
from enginelib.waiting import listens, until
from tests.engine.docker.conftest import SMALL
from tests.support.threads import in_threads


@pytest.fixture(scope="module")
def served() -> Iterator[Docker]:
    """A dmthin that serves, without dockerd."""
    docker = Docker(SCRATCH / "direct", "direct")
    docker.dmthin.start()
    yield docker
    assert docker.dmthin.end() == 0
    assert traces(docker.home) == []


@pytest.fixture
def plugin(served: Docker) -> Iterator[Plugin]:
    """A connection after Init; everything is removed in the end."""
    until(lambda: listens(served.plugin))
    connection = Plugin(served.plugin)
    assert json.loads(connection.raw("Plugin.Activate", b"")[1]) == {"Implements": ["GraphDriver"]}
    connection.ok("Init", Home=str(served.home), Opts=list(SMALL))
    yield connection
    with served.store() as store:
        for volume in reversed(store.ledger.volumes()):
            if not volume.name.startswith("@"):
                connection.ok("Remove", ID=volume.name)
    connection.ok("Cleanup")
    connection.close()


def test_one_connection_carries_every_call(plugin: Plugin) -> None:
    assert plugin.ok("Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}
    assert dict(plugin.ok("Status")["Status"])["Pool Mode"] == "rw"
    plugin.ok("Create", ID="layer")
    assert plugin.apply("layer", tar_of({"a": b"1", "dir": None, "dir/b": b"22"})) == {"Size": 3}
    plugin.ok("CreateReadWrite", ID="m-init", Parent="layer")
    plugin.ok("CreateReadWrite", ID="m", Parent="m-init", StorageOpt={"size": "1G"})
    place = Path(plugin.ok("Get", ID="m")["Dir"])
    assert (place / "dir/b").read_bytes() == b"22"
    (place / "dir/b").unlink()
    (place / "c").write_bytes(b"333")
    changes = [{"Path": "/c", "Kind": 1}, {"Path": "/dir", "Kind": 0}, {"Path": "/dir/b", "Kind": 2}]
    assert plugin.ok("Changes", ID="m", Parent="m-init") == {"Changes": changes}
    assert plugin.ok("DiffSize", ID="m", Parent="m-init") == {"Size": 3}
    assert plugin.ok("Exists", ID="m") == {"Exists": True}
    assert plugin.ok("Exists", ID="n") == {"Exists": False}
    assert plugin.ok("GetMetadata", ID="m")["Metadata"]["DeviceSize"] == str(1 << 30)
    plugin.ok("Put", ID="m")
    assert not place.exists()


def test_a_diff_that_is_applied_again_gives_the_same_tree(plugin: Plugin) -> None:
    plugin.ok("Create", ID="layer")
    plugin.apply("layer", tar_of({"keep": b"1", "gone": b"2", "was-dir": None, "was-dir/x": b"", "was-file": b""}))
    plugin.ok("CreateReadWrite", ID="m", Parent="layer")
    place = Path(plugin.ok("Get", ID="m")["Dir"])
    (place / "gone").unlink()
    (place / "was-dir/x").unlink()
    (place / "was-dir").rmdir()
    (place / "was-dir").write_text("file now")
    (place / "was-file").unlink()
    (place / "was-file").mkdir()
    (place / "was-file/inner").symlink_to("/etc/passwd")
    (place / "new").hardlink_to(place / "keep")
    plugin.ok("Put", ID="m")
    plugin.ok("Create", ID="copy", Parent="layer")
    plugin.apply("copy", plugin.diff("m", "layer"), "layer")
    assert plugin.ok("Changes", ID="copy", Parent="m") == {"Changes": []}
    assert plugin.ok("Changes", ID="m", Parent="copy") == {"Changes": []}
    with tarfile.open(fileobj=io.BytesIO(plugin.diff("m"))) as whole:
        assert sorted(whole.getnames()) == ["keep", "new", "was-dir", "was-file", "was-file/inner"]


def test_errors_have_dockers_form(plugin: Plugin) -> None:
    for method, fields, words in (
        ("Create", {"ID": "../../etc"}, "invalid layer id"),
        ("Create", {"ID": ""}, "invalid layer id"),
        ("Create", {"ID": "x", "Parent": "nothing"}, "no volume 'nothing'"),
        ("Create", {"ID": "x", "StorageOpt": {"size": "1"}}, "too small for ext4"),
        ("Get", {"ID": "nothing"}, "no volume 'nothing'"),
        ("GetMetadata", {"ID": "nothing"}, "no volume 'nothing'"),
        ("Changes", {"ID": "nothing"}, "no volume 'nothing'"),
        ("DiffSize", {"ID": "nothing"}, "no volume 'nothing'"),
    ):
        answer = plugin.call(method, **fields)
        assert words in answer["Err"], (method, answer)
    assert plugin.raw("GraphDriver.Create", b"")[0] == 200
    assert "no body" in json.loads(plugin.raw("GraphDriver.Create", b"")[1])["Err"]
    assert plugin.raw("GraphDriver.Diff", b'{"ID":"nothing"}')[0] == 404
    assert plugin.raw("GraphDriver.Nothing", b"{}")[0] == 404
    plugin.ok("Put", ID="nothing")
    plugin.ok("Remove", ID="nothing")


def test_a_layer_that_comes_again_without_its_tar_is_an_error(plugin: Plugin) -> None:
    plugin.ok("Create", ID="layer")
    assert "is empty" in plugin.apply("layer", b"")["Err"]
    assert plugin.apply("layer", tar_of({"a": b"1"})) == {"Size": 1}


@pytest.mark.parametrize(
    "tar",
    [
        b"this is no tar" * 1000,
        tar_of({"a": b"x" * 5000})[:2000],
        tar_of({"d": None}) + b"\xff" * (8 << 20),
    ],
    ids=["noise", "cut", "more"],
)
def test_a_broken_tar_is_read_to_its_end_and_the_connection_goes_on(plugin: Plugin, tar: bytes) -> None:
    plugin.ok("Create", ID="layer")
    answer = plugin.apply("layer", tar)
    plugin.ok("Exists", ID="layer")
    if "Err" in answer:
        plugin.ok("Remove", ID="layer")
    else:
        assert answer == {"Size": 0}, "only what follows a whole archive may be passed over"


def test_a_hostile_layer_stays_inside(plugin: Plugin) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in (
            ("out", tarfile.SYMTYPE, "/run"),
            ("up", tarfile.SYMTYPE, "../../../../../run"),
            ("out/hostile", tarfile.REGTYPE, ""),
            ("up/hostile2", tarfile.REGTYPE, ""),
            ("../../../../run/hostile3", tarfile.REGTYPE, ""),
            ("/run/hostile4", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    plugin.ok("Create", ID="layer")
    plugin.apply("layer", buffer.getvalue())
    assert not [path for path in Path("/run").iterdir() if path.name.startswith("hostile")]
    link = tarfile.TarInfo("shadow")
    link.type, link.linkname = tarfile.LNKTYPE, "../../../../etc/shadow"
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as tar:
        tar.addfile(link)
    assert "which does not exist" in plugin.apply("layer", buffer.getvalue())["Err"]


def test_a_layer_that_stalls_holds_nobody_up(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="slow")
    tar = tar_of({f"f{number}": b"x" * 100_000 for number in range(20)})
    slow = Plugin(served.plugin)
    slow.begin_apply("slow")
    slow.send_piece(tar[:500_000])
    # The rest comes only once these calls are answered.
    for number in range(5):
        plugin.ok("Create", ID=f"quick{number}", Parent="slow")
        plugin.ok("CreateReadWrite", ID=f"quicker{number}", Parent=f"quick{number}")
        plugin.ok("Get", ID=f"quicker{number}")
        plugin.ok("Put", ID=f"quicker{number}")
    slow.send_piece(tar[500_000:])
    assert slow.end_apply() == {"Size": 2_000_000}
    slow.close()


def test_a_sender_that_dies_leaves_a_layer_that_can_be_removed(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="cut")
    sender = Plugin(served.plugin)
    sender.begin_apply("cut")
    sender.send_piece(tar_of({"a": b"x" * 100_000})[:50_000])
    sender.close()
    plugin.ok("Remove", ID="cut")
    plugin.ok("Create", ID="cut")
    assert plugin.apply("cut", tar_of({"a": b"1"})) == {"Size": 1}


def test_many_connections_at_once(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    plugin.apply("layer", tar_of({"a": b"1"}))

    def one(number: int) -> None:
        mine = Plugin(served.plugin)
        for name, parent in ((f"m{number}-init", "layer"), (f"m{number}", f"m{number}-init")):
            mine.ok("CreateReadWrite", ID=name, Parent=parent)
            place = Path(mine.ok("Get", ID=name)["Dir"])
            (place / name).write_text(name)
            mine.ok("Put", ID=name)
        assert len(mine.ok("Changes", ID=f"m{number}", Parent="layer")["Changes"]) == 2
        mine.ok("Remove", ID=f"m{number}")
        mine.ok("Remove", ID=f"m{number}-init")
        mine.close()

    in_threads(20, one)


def test_counts_survive_a_restart_of_dmthin(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    for _ in range(2):
        place = Path(plugin.ok("Get", ID="layer")["Dir"])
    plugin.close()
    served.dmthin.end(9)
    served.dmthin.start()
    until(lambda: listens(served.plugin))
    again = Plugin(served.plugin)
    again.ok("Put", ID="layer")
    assert place.exists()
    again.ok("Put", ID="layer")
    assert not place.exists()
    again.close()


def test_a_layer_is_mounted_from_the_first_get_to_the_last_put(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    plugin.ok("Create", ID="other", Parent="layer")
    other = Path(plugin.ok("Get", ID="other")["Dir"])
    plugin.ok("Put", ID="layer")
    place = Path(plugin.ok("Get", ID="layer")["Dir"])
    assert plugin.ok("Get", ID="layer")["Dir"] == str(place)
    (place / "file").touch()
    plugin.ok("Put", ID="layer")
    assert (place / "file").exists()
    for _ in range(3):
        plugin.ok("Put", ID="layer")
        assert not place.exists()
    assert plugin.ok("Get", ID="layer")["Dir"] == str(place)
    assert (place / "file").exists()
    plugin.ok("Put", ID="layer")
    assert other.exists()
    plugin.ok("Put", ID="other")
    assert mounted(served) == []


def mounted(served: Docker) -> list[str]:
    return [entry.target for entry in mount.under(served.home) if entry.target != str(served.home / "mnt")]


@pytest.mark.parametrize("opened", [False, True], ids=["mounted", "with an open file"])
def test_a_layer_is_removed_while_it_is_mounted(plugin: Plugin, served: Docker, opened: bool) -> None:
    """BuildKit ends its views so, without a Put."""
    plugin.ok("Create", ID="layer")
    place = Path(plugin.ok("Get", ID="layer")["Dir"])
    with (place / "file").open("w") as file:
        if not opened:
            file.close()
        plugin.ok("Remove", ID="layer")
        assert mounted(served) == []
        assert plugin.ok("Exists", ID="layer") == {"Exists": False}
        plugin.ok("Create", ID="layer")
        again = Path(plugin.ok("Get", ID="layer")["Dir"])
        assert again == place
        assert list(again.iterdir()) == []
        plugin.ok("Put", ID="layer")
    with served.store() as store:
        until(lambda: not store.ledger.unfinished())


def test_init_again_leaves_what_is_mounted(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    place = Path(plugin.ok("Get", ID="layer")["Dir"])
    (place / "file").touch()
    for _ in range(3):
        plugin.ok("Init", Home=str(served.home), Opts=list(SMALL))
    assert (place / "file").exists()
    assert plugin.ok("Get", ID="layer")["Dir"] == str(place)
    plugin.ok("Put", ID="layer")
    assert (place / "file").exists()
    plugin.ok("Put", ID="layer")
    assert not place.exists()


def test_cleanup_takes_everything_down_and_init_brings_it_back(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    plugin.apply("layer", tar_of({"a": b"1"}))
    plugin.ok("Get", ID="layer")
    assert traces(served.home) != []
    for _ in range(2):
        plugin.ok("Cleanup")
        assert traces(served.home) == []
    plugin.ok("Init", Home=str(served.home), Opts=list(SMALL))
    assert (Path(plugin.ok("Get", ID="layer")["Dir"]) / "a").read_bytes() == b"1"
    plugin.ok("Put", ID="layer")


def test_a_reader_that_leaves_in_the_middle_of_a_diff(plugin: Plugin, served: Docker) -> None:
    plugin.ok("Create", ID="layer")
    plugin.apply("layer", tar_of({f"f{number}": b"x" * 1_000_000 for number in range(30)}))
    reader = Plugin(served.plugin)
    reader.request("POST", "/GraphDriver.Diff", json.dumps({"ID": "layer"}))
    assert len(reader.getresponse().read(100_000)) == 100_000
    reader.close()
    plugin.ok("Remove", ID="layer")
    with served.store() as store:
        until(lambda: not store.ledger.unfinished())
        assert store.ledger.find("layer") is None


def test_the_same_call_from_many_at_once(plugin: Plugin, served: Docker) -> None:
    def from_all(method: str, **fields: object) -> list[Any]:
        def one(_: int) -> Any:
            connection = Plugin(served.plugin)
            try:
                return connection.ok(method, **fields)
            finally:
                connection.close()

        with ThreadPoolExecutor(12) as threads:
            return list(threads.map(one, range(12)))

    assert from_all("Create", ID="layer") == [{}] * 12
    (place,) = {answer["Dir"] for answer in from_all("Get", ID="layer")}
    assert Path(place).is_dir()
    from_all("Put", ID="layer")
    assert not Path(place).exists()
    assert from_all("Remove", ID="layer") == [{}] * 12


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"ID": 7}', b'{"ID": "x"' + b" " * (8 << 20) + b"}"])
def test_a_body_that_is_no_request_is_answered(plugin: Plugin, body: bytes) -> None:
    status, answer = plugin.raw("GraphDriver.Create", body)
    assert json.loads(answer)["Err"], status
    if len(body) < 1000:  # who sends more than is read may have to connect again
        assert status == 200
    plugin.close()
    assert plugin.ok("Exists", ID="x") == {"Exists": False}
