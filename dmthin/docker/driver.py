"""Docker's graphdriver on a store: every call but those that carry a tar. Blocks; to be called from threads.

Calls that dockerd may repeat give the same answer again. Layers are volumes under their ids: images what Create made,
containers what CreateReadWrite made, and both may be written and have children.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.docker.home import open_home
from dmthin.docker.protocol import IdRanges, InitRequest, LayerRequest
from dmthin.docker.status import Pairs, metadata, status_pairs
from dmthin.errors import AlreadyExists, DmthinError, InUse, Unavailable
from dmthin.store.config.options import parse_volume_size
from dmthin.store.state.model import Kind, State, Volume
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue

logger = logging.getLogger(__name__)

_TRAVERSABLE = 0o711
_ATTEMPTS = 3


class Driver:
    """The graphdriver of one dockerd. `memory` is a file that outlives us, but not the machine's next start."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._queue = BackgroundQueue("docker")
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._init: InitRequest | None = None

    def restore(self) -> None:
        """Open the store that a process before us served: dockerd, which still runs, will not say Init again."""
        try:
            known = json.loads(self._memory.read_bytes())
            ranges = [tuple(tuple(entry) for entry in known[key]) for key in ("uid_ranges", "gid_ranges")]
            self._init = InitRequest(Path(known["home"]), (), *ranges)
            self._store = self._adopt(Store(self._init.home, background=Background(self._queue)))
        except FileNotFoundError:
            return
        except (DmthinError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the store that was served before is not opened: %s", error)

    def close(self) -> None:
        """Let go of the store, what is under way ended first; its pool, devices and mounts stay."""
        self._queue.close()
        if self._store is not None:
            self._store.close()

    @property
    def store(self) -> Store:
        """The store. Raises Unavailable before Init."""
        if self._store is None:
            raise Unavailable("dmthin does not know its store yet", hint="dockerd names it when it starts: restart it")
        return self._store

    @property
    def id_ranges(self) -> tuple[IdRanges, IdRanges]:
        """How user and group ids of containers are mapped to the host's."""
        return (self._init.uid_ranges, self._init.gid_ranges) if self._init else ((), ())

    def init(self, request: InitRequest) -> None:
        """Open the store in dockerd's folder, made at the first time, and bring its pool up."""
        with self._lock:
            self._require_same_home(request.home)
            store = open_home(request.home, request.options, Background(self._queue))
            try:
                store.pool.activate()
                store.layers.forget_lost_uses()
                if request.uid_ranges or request.gid_ranges:
                    for folder in (store.layout.root, store.layout.mounts):
                        folder.chmod(_TRAVERSABLE)  # the containers' root, which is somebody else here, passes through
                self._remember(request)
            except BaseException:
                store.close()
                raise
            self._store, self._init = self._adopt(store), request
        logger.info("serving the store in %s", request.home)
        with suppress(DmthinError):  # a full pool must not keep dockerd from starting, and from removing things
            store.layers.prepare_base()

    def create(self, request: LayerRequest, kind: Kind) -> None:
        """Make a layer; one that is there already by the same request will do."""
        store, layers = self.store, self.store.layers
        size = parse_volume_size(request.options)
        parent = store.ledger.ready(request.parent) if request.parent else None
        for attempt in range(_ATTEMPTS):
            try:
                if parent is None:
                    layers.create_first(request.id, kind, size)
                    self._give_root(request.id)
                else:
                    layers.create(request.id, kind, parent, size)
                break
            except AlreadyExists:
                found = self._await_made(request.id)
                if found is not None and _is_repeated(found, kind, parent, size):
                    return
                if found is not None or attempt + 1 == _ATTEMPTS:
                    raise
        logger.info("created the %s %s of %s", kind, request.id, request.parent or "nothing")

    def remove(self, layer: str) -> None:
        """Remove a layer; fine if there is none."""
        self.store.layers.remove(layer)
        logger.info("removed %s", layer)

    def get(self, request: LayerRequest) -> str:
        """Mount a layer, or count on its mount once more; its folder."""
        options = f'context="{request.mount_label}"' if request.mount_label else ""
        return os.fspath(self.store.layers.acquire(request.id, options))

    def put(self, layer: str) -> None:
        """Let go of a layer's mount."""
        self.store.layers.release(layer)

    def exists(self, layer: str) -> bool:
        """Whether there is such a layer."""
        volume = self.store.ledger.find(layer)
        return volume is not None and volume.state in (State.READY, State.GROWING)

    def status(self) -> Pairs:
        """The fields of `docker info`."""
        return status_pairs(self.store)

    def metadata(self, layer: str) -> dict[str, str]:
        """The fields of `docker inspect`. Raises NotFound."""
        return metadata(self.store, self.store.ledger.ready(layer))

    def cleanup(self) -> None:
        """Unmount everything and take the pool down, as far as nobody uses it."""
        store = self.store
        store.layers.unmount_all()
        self._queue.drain()  # a change that comes after the pool is down would bring it up again
        try:
            store.pool.deactivate()
        except InUse as error:
            logger.warning("the pool stays up: %s", error)
        else:
            logger.info("took the pool of %s down", store.layout.root)

    @contextmanager
    def opened(self, layer: str) -> Iterator[int]:
        """A detached mount of a layer, as a descriptor of its root. Raises NotFound."""
        with self.store.layers.opened(layer) as root:
            yield root

    def tidy(self) -> None:
        """End what removals had to leave to the last user of a device, if that has gone; extend a pool that is due."""
        if (store := self._store) is None:
            return
        store.recover()
        if store.pool.extend_if_due():
            report = store.pool.status()
            logger.info("extended the pool: data %d, metadata %d bytes", report.data_size, report.metadata_size)

    def _adopt(self, store: Store) -> Store:
        """Let a thread do what dockerd need not wait for, and first what a process before us had left to its own."""
        with suppress(DmthinError):
            store.cleanup.deactivate_idle(Kind.IMAGE, Kind.CONTAINER)
        return store

    def _require_same_home(self, home: Path) -> None:
        """Raise InUse for a second dockerd: calls do not say whose they are."""
        if self._store is None or self._init is None or self._init.home == home:
            return
        if self._store.layers.mounted():
            raise InUse(
                f"dmthin serves the dockerd of {self._init.home.parent} here, which has layers mounted",
                hint=f"give the one of {home.parent} a socket of its own: dmthin serve --docker SOCKET",
            )

    def _remember(self, request: InitRequest) -> None:
        content = {"home": os.fspath(request.home), "uid_ranges": request.uid_ranges, "gid_ranges": request.gid_ranges}
        self._memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._memory.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.rename(self._memory)

    def _await_made(self, layer: str) -> Volume | None:
        """A layer, once nobody is making it any more; None if that has failed."""
        volume = self.store.ledger.find(layer)
        if volume is not None and volume.state is State.MAKING:
            self.store.locks.volume(volume.device_id).release()  # which its maker has until it is done
            volume = self.store.ledger.find(layer)
        return volume

    def _give_root(self, layer: str) -> None:
        """Let the root of a first layer belong to the containers' root."""
        owners = [_host_id(ranges) for ranges in self.id_ranges]
        if not any(owners):
            return
        try:
            with self.opened(layer) as root:
                os.chown(".", *owners, dir_fd=root)
        except BaseException:
            self.store.layers.remove(layer)
            raise


def _host_id(ranges: IdRanges) -> int:
    """The host's id of the containers' 0."""
    for inside, outside, count in ranges:
        if inside <= 0 < inside + count:
            return outside - inside
    return 0


def _is_repeated(volume: Volume, kind: Kind, parent: Volume | None, size: int | None) -> bool:
    """Whether a layer that is in the way was made by the same request: dockerd repeats one whose answer it missed."""
    if volume.state is not State.READY or volume.kind is not kind:
        return False
    if parent is not None and volume.parent != parent.device_id:
        return False
    return size is None or volume.size == size
