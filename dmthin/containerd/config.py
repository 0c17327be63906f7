"""Which snapshotters a daemon is, and what containerd must be told of them."""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd.snapshotter import Snapshotter
from dmthin.containerd.usage import UsageCounter
from dmthin.errors import DmthinError, InvalidValue
from dmthin.store.create import ensure_store
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import parse_size

DEFAULT_NAME = "dmthin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class SnapshotterPlan:
    """One snapshotter: its name for containerd, its store, the bytes of its snapshots without parent if not usual."""

    name: str
    root: Path
    size: int | None = None


def parse_plans(texts: Iterable[str], root: Path) -> tuple[SnapshotterPlan, ...]:
    """The snapshotters that `NAME[=ROOT][,size=SIZE]` describe, each on the store in `root` unless it names another.

    Raises InvalidValue.
    """
    plans = tuple(_parse(text, root) for text in texts) or (SnapshotterPlan(DEFAULT_NAME, root),)
    names = [plan.name for plan in plans]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidValue(f"the snapshotter {min(twice)!r} is given twice")
    return plans


@contextmanager
def opened(plans: Iterable[SnapshotterPlan], options: Iterable[str]) -> Iterator[list[Snapshotter]]:
    """The snapshotters, on stores that are made if they are not there; their pools are brought up if that can be.

    `options` are storage options. What a process before us had left for later is taken up. Raises what `ensure_store`
    does; a pool that does not come up is an error of the calls that need it.
    """
    options = tuple(options)
    stores: dict[Path, tuple[Store, UsageCounter]] = {}
    with ExitStack() as stack:
        snapshotters = []
        for plan in plans:
            root = plan.root.absolute().resolve()
            if root not in stores:
                work, spares, counting = (BackgroundQueue(name) for name in ("containerd", "spares", "usage"))
                store = stack.enter_context(ensure_store(root, options, Background(work, spares)))
                for queue in (work, counting, spares):
                    stack.callback(queue.close)
                stack.callback(store.spares.close)
                stores[root] = store, UsageCounter(store, counting)
                with suppress(DmthinError):
                    store.pool.activate()
                    store.cleanup.deactivate_idle(Kind.IMAGE)
                    store.layers.prepare_base()
            store, usage = stores[root]
            snapshotters.append(Snapshotter(plan.name, store, usage, plan.size or store.options.base_size))
        yield snapshotters


def containerd_config(plans: Iterable[SnapshotterPlan], socket: Path) -> str:
    """What belongs into containerd's config.toml, for 1.6 to 2.x (docs/PLUGINS.md and docs/cri/config.md there)."""
    plans = tuple(plans)
    lines = ["# /etc/containerd/config.toml: containerd 1.6 and 1.7 read it with `version = 2`, 2.x with 3 as well."]
    for plan in plans:
        lines += [
            f"[proxy_plugins.{_quoted(plan.name)}]",
            '  type = "snapshot"',
            f"  address = {_quoted(str(socket))}",
            f"  [proxy_plugins.{_quoted(plan.name)}.exports]",
            f"    root = {_quoted(str(plan.root))}",
            '    enable_remote_snapshot_annotations = "true"',
            "",
        ]
    first = _quoted(plans[0].name)
    lines += [
        "# The kubelet's images and pods, containerd 1.x:",
        '[plugins."io.containerd.grpc.v1.cri".containerd]',
        f"  snapshotter = {first}",
        "  disable_snapshot_annotations = false",
        "",
        "# The same for containerd 2.x:",
        "# [plugins.'io.containerd.cri.v1.images']",
        f"#   snapshotter = {first}",
        "# [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
        '#   platform = "linux/amd64"',
        f"#   snapshotter = {first}",
        '#   differ = "walking"',
    ]
    return "\n".join(lines) + "\n"


def _parse(text: str, root: Path) -> SnapshotterPlan:
    place, *more = text.split(",")
    name, equals, folder = place.partition("=")
    if not _NAME.fullmatch(name):
        raise InvalidValue(f"{name!r} is no name for a snapshotter", hint="use letters, digits, _ . and -")
    if equals and not folder.startswith("/"):
        raise InvalidValue(f"the store of the snapshotter {name} is no absolute path: {folder!r}")
    size = None
    for option in more:
        key, _, value = option.partition("=")
        if key != "size":
            raise InvalidValue(f"unknown option {key!r} of the snapshotter {name}", hint="only size=SIZE is known")
        if not (size := parse_size(value, f"size of the snapshotter {name}")):
            raise InvalidValue(f"the size of the snapshotter {name} is 0")
    return SnapshotterPlan(name, Path(folder) if equals else root, size)


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
