"""Configuration: the snapshotters that a daemon serves."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dmthin.containerd.docker_containers import DockerContainers
from dmthin.containerd.snapshotter import Snapshotter
from dmthin.containerd.usage import UsageCounter
from dmthin.errors import DmthinError, InvalidValue
from dmthin.store.create import ensure_store
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue
from dmthin.units import parse_size, volume_size

DEFAULT_NAME = "dmthin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class SnapshotterConfig:
    """One snapshotter: its name for containerd, the root of its store, and the size in bytes of parentless snapshots.

    Without a `size`, snapshots without a parent have dm.basesize.
    """

    name: str
    root: Path
    size: int | None = None


def parse_snapshotters(texts: Iterable[str], root: Path) -> tuple[SnapshotterConfig, ...]:
    """Parse specifications `NAME[=ROOT][,size=SIZE]` of snapshotters. ROOT defaults to `root`.

    Without any, return the default one. Raise InvalidValue.
    """
    configs = tuple(_parse(text, root) for text in texts) or (SnapshotterConfig(DEFAULT_NAME, root),)
    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidValue(f"snapshotter {min(twice)!r} is specified twice", hint="use each name once")
    return configs


@contextmanager
def open_snapshotters(
    configs: Iterable[SnapshotterConfig], options: Iterable[str], docker_root: Path | None = None
) -> Iterator[list[Snapshotter]]:
    """Open the stores of the snapshotters, created where missing, and activate their pools.

    `options` are storage options; `docker_root` is the data root of a dockerd whose containers are to have their sizes.
    Background work that an earlier process left undone is queued again. Raise what `ensure_store` raises. A pool that
    cannot be activated is not an error here, but in each call that needs it.
    """
    options = tuple(options)
    containers = None if docker_root is None else DockerContainers(docker_root)
    stores: dict[Path, tuple[Store, UsageCounter]] = {}
    with ExitStack() as stack:
        snapshotters = []
        for config in configs:
            root = Path(os.path.realpath(config.root))
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
            base_size = config.size or store.options.base_size
            snapshotters.append(Snapshotter(config.name, store, usage, base_size, containers))
        yield snapshotters


def _parse(text: str, root: Path) -> SnapshotterConfig:
    """Parse one specification. Raise InvalidValue."""
    place, *more = text.split(",")
    name, equals, folder = place.partition("=")
    if not _NAME.fullmatch(name):
        raise InvalidValue(
            f"invalid snapshotter name {name!r}",
            hint="use letters, digits, _ . and -, at most 64, a letter or digit first",
        )
    if equals and not folder.startswith("/"):
        raise InvalidValue(f"the root of snapshotter {name} is not an absolute path: {folder!r}")
    size = None
    for option in more:
        key, _, value = option.partition("=")
        if key != "size":
            raise InvalidValue(f"unknown option {key!r} of snapshotter {name}", hint="the only option is size=SIZE")
        if not (size := volume_size(parse_size(value, f"size of snapshotter {name}"))):
            raise InvalidValue(f"the size of snapshotter {name} is 0", hint="use a positive size, such as size=20G")
    return SnapshotterConfig(name, Path(folder) if equals else root, size)
