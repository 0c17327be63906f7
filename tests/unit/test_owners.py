"""Which volume a name or the beginning of an id means, and which volumes an administrator's verbs leave alone."""

from pathlib import Path

import pytest

from dmthin.containerd.owners import containerd_owners
from dmthin.docker.owners import ContainerKeys, of_container, of_init_layer
from dmthin.errors import InUse, InvalidValue, NotFound
from dmthin.store.owners import NO_OWNERS, Owner, Owners, short
from dmthin.store.state.model import Kind, Snapshot, State, Volume

WEB, API = "8c1f" + "a" * 60, "8c1f" + "b" * 60
WEB_ROOT, API_ROOT = "5" * 64, "6" * 64
TOP, IMAGE = "7" * 64, "9" * 64


def volume(name: str, kind: Kind = Kind.CONTAINER, state: State = State.READY, *, read_only: bool = False) -> Volume:
    return Volume(1, name, kind, state, 1 << 30, "ext4", None, 0, read_only=read_only)


VOLUMES = [
    volume("mine"),
    volume(WEB_ROOT),
    volume(f"{WEB_ROOT}-init"),
    volume(API_ROOT),
    volume(TOP, Kind.IMAGE),
    volume("debian", Kind.IMAGE),
]
OWNERS = Owners(
    {
        WEB_ROOT: of_container(WEB, "web", WEB_ROOT),
        f"{WEB_ROOT}-init": of_init_layer(WEB, "web"),
        API_ROOT: of_container(API, "api", API_ROOT),
        TOP: Owner("dockerd", "the top layer", "use docker rmi web", "web", "", ("web:latest", "web"), (IMAGE, TOP)),
    }
)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("mine", "mine"),
        ("debian", "debian"),
        (WEB_ROOT, WEB_ROOT),
        (f"{WEB_ROOT}-init", f"{WEB_ROOT}-init"),
        (f"{WEB_ROOT[:12]}-init", f"{WEB_ROOT}-init"),
        (WEB_ROOT[:12], WEB_ROOT),
        ("web", WEB_ROOT),
        ("web:latest", TOP),
        (WEB, WEB_ROOT),
        ("8c1fa", WEB_ROOT),
        ("8c1fbbb", API_ROOT),
        ("6", API_ROOT),
        (f"sha256:{IMAGE}", TOP),
        ("sha256:99", TOP),
        ("8c1fc", "8c1fc"),
        ("", ""),
        ("8C1FA", "8C1FA"),
    ],
)
def test_what_a_name_means(text: str, meaning: str) -> None:
    assert OWNERS.meant(text, VOLUMES) == meaning


def test_the_verbs_noun_decides_what_an_engines_name_means() -> None:
    assert OWNERS.meant("web", VOLUMES, Kind.CONTAINER) == WEB_ROOT
    assert OWNERS.meant("web", VOLUMES, Kind.IMAGE) == TOP
    assert OWNERS.meant("7", VOLUMES, Kind.CONTAINER) == "7"
    assert NO_OWNERS.meant("8c1fa", VOLUMES) == "8c1fa"


def test_a_volumes_own_name_goes_first() -> None:
    assert OWNERS.meant("web", [*VOLUMES, volume("web")]) == "web"
    assert OWNERS.meant("8c1fa", [*VOLUMES, volume("8c1fa", Kind.IMAGE)], Kind.CONTAINER) == "8c1fa"
    assert OWNERS.meant("web", [*VOLUMES, volume("web", state=State.MAKING)]) == WEB_ROOT


def test_several_volumes_are_an_error_that_names_them() -> None:
    with pytest.raises(InvalidValue, match=r"'8c1' may be 555555555555 \(web\) or 666666666666 \(api\): write more"):
        OWNERS.meant("8c1", VOLUMES)
    many = [volume(f"{number:064x}") for number in range(16, 26)]
    owners = Owners({one.name: of_container(one.name, "", one.name) for one in many})
    with pytest.raises(InvalidValue, match=r"or others"):
        owners.meant("0000", many)


def test_the_beginning_of_an_id_is_whole_with_the_digits_of_a_table() -> None:
    for text in ("web", WEB, WEB_ROOT, WEB[:12], WEB_ROOT[:12]):
        assert OWNERS.meant(text, VOLUMES, Kind.CONTAINER, whole=True) == WEB_ROOT
    assert OWNERS.meant(f"sha256:{IMAGE[:12]}", VOLUMES, whole=True) == TOP
    assert OWNERS.meant("mine", VOLUMES, whole=True) == "mine"
    assert OWNERS.meant("gone", VOLUMES, whole=True) == "gone"
    with pytest.raises(NotFound) as refused:
        OWNERS.meant("8c1fa", VOLUMES, Kind.CONTAINER, whole=True)
    sentence = (
        "there is no container '8c1fa', only 555555555555 (web): with --force write the whole id, or 12 digits of it"
    )
    assert str(refused.value) == sentence
    for text in ("8c1", WEB[:11], "sha256:99"):
        with pytest.raises(NotFound):
            OWNERS.meant(text, VOLUMES, whole=True)


def test_ids_are_cut_wherever_they_stand() -> None:
    assert short(WEB_ROOT) == "5" * 12
    assert short(f"{WEB_ROOT}-init") == f"{'5' * 12}-init"
    assert short(f"@snapshot/x/moby/3/sha256:{TOP}") == f"@snapshot/x/moby/3/sha256:{'7' * 12}"
    for name in ("5" * 63, "5" * 65, "web", "@base/ext4/10G", "layer of debian:12"):
        assert short(name) == name


def test_what_an_engine_has_is_protected_by_a_sentence() -> None:
    OWNERS.require_none("mine")
    with pytest.raises(InUse) as refused:
        OWNERS.require_none(WEB_ROOT)
    sentence = 'volume 555555555555 is the root of dockerd\'s container "web": use docker rm web, or give --force'
    assert str(refused.value) == sentence


def test_a_store_with_an_engines_volumes_is_protected() -> None:
    NO_OWNERS.require_none_of(VOLUMES)
    OWNERS.require_none_of([volume("mine")])
    with pytest.raises(
        InUse, match=r"^4 volumes belong to dockerd: 5{12} is the root of dockerd's container \"web\": "
    ):
        OWNERS.require_none_of(VOLUMES)
    with pytest.raises(InUse, match=r"^a volume belongs to dockerd: 7{12} is the top layer: remove its"):
        OWNERS.require_none_of(VOLUMES[-2:])


def snapshot(key: str, parent: str = "", labels: dict[str, str] | None = None, kind: Kind = Kind.IMAGE) -> Snapshot:
    return Snapshot(volume(f"@snapshot/dmthin/{key}", kind), "dmthin", key, parent, labels or {}, 0, 0)


def named(*snapshots: Snapshot, data_root: Path = Path("/nowhere")) -> dict[str, Owner]:
    found = containerd_owners(snapshots, ContainerKeys(data_root))
    return {name.removeprefix("@snapshot/dmthin/"): owner for name, owner in found.items()}


def test_a_snapshot_of_ctr_has_the_containers_name() -> None:
    layer = f"default/2/sha256:{TOP}"
    found = named(snapshot(layer), snapshot("default/3/web", layer, kind=Kind.CONTAINER))
    web = found["default/3/web"]
    assert (web.engine, web.name, web.names, web.ids) == ("containerd", "web", ("web",), ())
    assert (web.what, web.remedy) == (
        'containerd\'s active snapshot "web" of namespace default', "remove it with ctr -n default"
    )  # fmt: skip
    image = found[layer]
    assert (image.name, image.id, image.ids) == ("image of web", f"sha256:{TOP}", (TOP,))
    assert image.what == "containerd's layer sha256:777777777777 of namespace default"


def test_snapshots_of_dockerd_in_containerd_have_dockers_names(tmp_path: Path) -> None:
    record = tmp_path / "containers" / WEB / "config.v2.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"Name": "/web"}')
    layer = f"moby/2/sha256:{TOP}"
    init, root = f"moby/4/{WEB}-init", f"moby/5/{WEB}"
    snapshots = [snapshot(layer), snapshot(init, layer), snapshot(root, init, kind=Kind.CONTAINER)]
    found = named(*snapshots, data_root=tmp_path)
    assert found[root] == of_container(WEB, "web")
    assert found[init] == of_init_layer(WEB, "web")
    assert (found[layer].name, found[layer].remedy) == ("image of web", "remove it with docker")
    unknown = named(*snapshots)
    assert unknown[root].what == f"the root of dockerd's container {WEB[:12]}"
    assert unknown[layer].name == f"image of {WEB[:12]}"


def test_layers_with_a_label_have_the_images_name() -> None:
    label = {"containerd.io/snapshot/cri.image-ref": "reg/app:1"}
    lower, upper, pod = f"k8s.io/2/sha256:{IMAGE}", f"k8s.io/4/sha256:{TOP}", f"k8s.io/5/{WEB}"
    found = named(
        snapshot(lower, labels=label), snapshot(upper, lower, label), snapshot(pod, upper, kind=Kind.CONTAINER)
    )
    assert found[lower].name == "layer of reg/app:1"
    assert (found[upper].name, found[upper].names[0]) == ("reg/app:1", "reg/app:1")
    assert (found[pod].ids, found[pod].remedy) == ((WEB,), "remove it with crictl")


def test_a_layer_that_was_published_has_its_chain_id() -> None:
    chain = f"sha256:{TOP}"
    published = snapshot(f"default/3/extract-1-x {chain}", labels={"containerd.io/snapshot.ref": chain})
    owner = named(published)[published.key]
    assert (owner.name, owner.id, owner.ids) == (chain, chain, (TOP,))
    assert owner.what == "containerd's layer sha256:777777777777 of namespace default"


@pytest.mark.parametrize("key", ["bare", "a/b/c", "default/3/", "/3/web", "moby/x/y"])
def test_keys_that_containerd_would_not_make(key: str) -> None:
    assert named(snapshot(key, kind=Kind.CONTAINER))[key].engine == "containerd"
