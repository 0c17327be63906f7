"""containerd's List: messages of a hundred, what else may be asked meanwhile, and every form of a filter."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from enginelib.snapshots import Snapshots
from tests.support.snapshotters import Daemon, collect_garbage, layer, refused, serving
from tests.support.stores import scratch_folder

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with scratch_folder() as folder, serving(folder, "dmthin", "shelf") as daemon:
        yield daemon


def test_list_tells_what_stat_tells_in_messages_of_a_hundred(snapshots: Snapshots, place: Path) -> None:
    """Whoever reads a List may ask for each snapshot meanwhile, and make and remove some; 10M do not fit a socket."""
    base = layer(snapshots, "base", "", place)
    labels = {f"containerd.io/snapshot/{number}": "x" * 4000 for number in range(20)}
    for number in range(125):
        snapshots.view(f"view-{number}", "base", labels)
    batches = []
    for batch in snapshots.batches():
        batches.append(batch)
        for info in batch:
            assert snapshots.stat(info.name) == info
        snapshots.prepare(f"meanwhile-{len(batches)}")
        snapshots.commit(f"committed-{len(batches)}", f"meanwhile-{len(batches)}")
        snapshots.remove(f"view-{len(batches)}")
    assert [len(batch) for batch in batches] == [100, 26]
    assert batches[0][0] == base
    assert {info.name for batch in batches for info in batch} == {"base", *(f"view-{n}" for n in range(125))}
    assert {info.kind for batch in batches for info in batch} == {"committed", "view"}


@pytest.fixture(scope="module")
def library(daemon: Daemon) -> Iterator[Snapshots]:
    """Four snapshots to be filtered."""
    with daemon.client("shelf") as client:
        client.prepare("base-key", labels={"containerd.io/snapshot/size": "9"})
        client.commit("base", "base-key", {"containerd.io/snapshot.ref": "sha256:1", "one.two": "dots"})
        client.prepare("default/2/active", "base", {"tier": "back end", "e": 'qu"ote', "empty": ""})
        client.view("view", "base", {"tier": "front"})
        client.view("empty-view")
        client.cleanup()
        yield client
        collect_garbage(client)


FILTERS = {
    "": "abve",
    "name": "abve",
    "name==base": "b",
    'name=="default/2/active"': "a",
    "name==default/2/active": "a",
    "name!=base": "ave",
    "name~=^default/.*/act": "a",
    "name~=ew$": "ve",
    "name~=/e.{3}y/": "e",
    "name~=|^base$|": "b",
    'name~="^(base|view)$"': "bv",
    "name~=^(base|view)$": "bv",
    "name~=(": "",
    "parent": "abve",
    'parent==""': "be",
    "parent==base": "av",
    "parent!=base": "be",
    "kind": "abve",
    "kind==active": "a",
    "kind==view": "ve",
    "kind==committed": "b",
    "kind!=view": "ab",
    "kind==view,parent==base": "v",
    "kind==view,parent==base,name==base": "",
    "labels.tier": "av",
    "labels.tier==front": "v",
    'labels.tier=="back end"': "a",
    r'labels.tier=="back\x20\u0065nd"': "a",
    r'labels.e=="qu\"ote"': "a",
    "labels.tier!=front": "abe",
    'labels."tier"~="^b"': "a",
    "labels.empty": "a",
    'labels.empty==""': "a",
    'labels.nothing==""': "",
    'labels.nothing!=""': "",
    "labels.nothing!=x": "abve",
    "labels.one.two==dots": "b",
    'labels."one.two"==dots': "b",
    'labels."one".two': "b",
    'labels."containerd.io/snapshot.ref"==sha256:1': "b",
    'labels."containerd.io/snapshot.ref"=="sha256:1",parent==""': "b",
    'labels."containerd.io/snapshot.ref"=="sha256:1",parent=="base"': "",
    'labels."containerd.io/snapshot/size"': "",
    "labels": "",
    "unknown": "",
    "unknown==x": "",
    "unknown!=x": "abve",
    "name.more": "",
}


def test_every_form_of_a_filter(library: Snapshots) -> None:
    letters = {"default/2/active": "a", "base": "b", "view": "v", "empty-view": "e"}
    found = {text: {letters[info.name] for info in library.list(text)} for text in FILTERS}
    assert found == {text: set(wanted) for text, wanted in FILTERS.items()}


def test_of_several_filters_one_must_match(library: Snapshots) -> None:
    names = {info.name for info in library.list("name==base", "kind==view,parent==base", "name==nothing")}
    assert names == {"base", "view"}
    assert len(library.list("name==nothing", "")) == 4


@pytest.mark.parametrize(
    "text",
    ["name==", "name=base", "name==base,", ",name", "name base", 'name=="base', r'name=="\q"', "name===base", "==x",
     "name.", "name== a b", "name@=x", '"name', "na/me"],
)  # fmt: skip
def test_what_is_no_filter_is_refused(library: Snapshots, text: str) -> None:
    with refused(INVALID, "filter"):
        library.list(text)
    with refused(INVALID, "filter"):
        library.list("name==base", text)
