"""Docker's graphdriver on a store: all calls except those that transfer a tar. Blocking; to be called from threads.

Calls that dockerd may repeat are idempotent. A layer is a volume named by the layer's id: an image if Create made it, a
container if CreateReadWrite did. Both may be written and have children.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmthin.docker.home import open_home
from dmthin.docker.protocol import InitRequest, LayerRequest
from dmthin.docker.status import Pairs, metadata, status_pairs
from dmthin.errors import AlreadyExists, DmthinError, InUse, Unavailable
from dmthin.layers.idmap import IdRanges
from dmthin.store.config.options import parse_volume_size
from dmthin.store.state.model import Kind, State, Volume
from dmthin.store.store import Store
from dmthin.store.volumes.background import Background, BackgroundQueue

logger = logging.getLogger(__name__)

_TRAVERSABLE = 0o711
_ATTEMPTS = 3


class Driver:
    """The graphdriver of one dockerd.

    `state_file` records the Init request. It must survive a restart of this process, but not a reboot. `log` is where
    this process logs, as `docker info` is to show it.
    """

    def __init__(self, state_file: Path, log: str = "") -> None:
        self._state_file = state_file
        self._log = log
        self._queue = BackgroundQueue("docker")
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._init: InitRequest | None = None

    def restore(self) -> None:
        """Reopen the store of the last Init: after a restart of this process alone, dockerd does not repeat Init.

        Do nothing if there is no state file; log a warning if the store cannot be opened.
        """
        try:
            known = json.loads(self._state_file.read_bytes())
            ranges = [tuple(tuple(entry) for entry in known[key]) for key in ("uid_ranges", "gid_ranges")]
            self._init = InitRequest(Path(known["home"]), (), *ranges)
            self._store = self._adopt(Store(self._init.home, background=Background(self._queue)))
        except FileNotFoundError:
            return
        except (DmthinError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("cannot reopen the store that was served before: %s", error)

    def close(self) -> None:
        """Finish the background work and close the store. The pool, its devices and mounts stay."""
        self._queue.close()
        if self._store is not None:
            self._store.close()

    @property
    def store(self) -> Store:
        """The store. Raise Unavailable before Init."""
        if self._store is None:
            raise Unavailable(
                "no store: dockerd has not sent Init", hint="restart dockerd, which sends it at its start"
            )
        return self._store

    @property
    def id_ranges(self) -> tuple[IdRanges, IdRanges]:
        """The maps of user and of group ids between containers and the host."""
        return (self._init.uid_ranges, self._init.gid_ranges) if self._init else ((), ())

    def init(self, request: InitRequest) -> None:
        """Open the store in dockerd's directory, created at the first start, and activate its pool.

        Raise InUse if another dockerd has layers mounted, and what `open_home` and the activation raise.
        """
        with self._lock:
            self._require_same_home(request.home)
            store = open_home(request.home, request.options, Background(self._queue))
            try:
                store.pool.activate()
                store.layers.forget_lost_uses()
                if request.uid_ranges or request.gid_ranges:
                    for folder in (store.layout.root, store.layout.mounts):
                        folder.chmod(_TRAVERSABLE)  # the containers' root is an unprivileged user of the host
                self._save_state(request)
            except BaseException:
                store.close()
                raise
            self._store, self._init = self._adopt(store), request
        logger.info("serving the store in %s", request.home)
        with suppress(DmthinError):  # even with a full pool dockerd must be able to start, and to remove layers
            store.layers.prepare_base()

    def create(self, request: LayerRequest, kind: Kind) -> None:
        """Create a layer. Do nothing if an identical request has created it already.

        Raise AlreadyExists, NotFound (the parent), InvalidValue (the size), NoDataSpace or NoMetadataSpace.
        """
        store, layers = self.store, self.store.layers
        size = parse_volume_size(request.options)
        parent = store.ledger.ready(request.parent) if request.parent else None
        for attempt in range(_ATTEMPTS):
            try:
                if parent is None:
                    layers.create_first(request.id, kind, size)
                    self._chown_root(request.id)
                else:
                    layers.create(request.id, kind, parent, size)
                break
            except AlreadyExists:
                found = self._wait_until_made(request.id)
                if found is not None and _is_repeated(found, kind, parent, size):
                    return
                if found is not None or attempt + 1 == _ATTEMPTS:
                    raise
        logger.info("created %s %s on %s", kind, request.id, request.parent or "no parent")

    def remove(self, layer: str) -> None:
        """Remove a layer. Do nothing if there is none. Raise InUse where dm.use_deferred_deletion is false."""
        self.store.layers.remove(layer)
        logger.info("removed layer %s", layer)

    def get(self, request: LayerRequest) -> str:
        """Mount a layer, or take a further reference on its mount. Return the mount point.

        Raise NotFound, NoDataSpace or Unavailable.
        """
        options = f'context="{request.mount_label}"' if request.mount_label else ""
        return os.fspath(self.store.layers.acquire(request.id, options))

    def put(self, layer: str) -> None:
        """Drop a reference on a layer's mount, and unmount the layer with the last one."""
        self.store.layers.release(layer)

    def exists(self, layer: str) -> bool:
        """Return whether the layer exists."""
        volume = self.store.ledger.find(layer)
        return volume is not None and volume.state in (State.READY, State.GROWING)

    def status(self) -> Pairs:
        """Return the driver status for `docker info`."""
        return status_pairs(self.store, self._log)

    def metadata(self, layer: str) -> dict[str, str]:
        """Return a layer's data for `docker inspect`. Raise NotFound."""
        return metadata(self.store, self.store.ledger.ready(layer))

    def cleanup(self) -> None:
        """Unmount all layers and deactivate the pool. If something is still in use, log a warning."""
        store = self.store
        store.layers.unmount_all()
        self._queue.drain()  # a later change would activate the pool again
        try:
            store.pool.deactivate()
        except InUse as error:
            logger.warning("the pool stays active: %s", error)
        else:
            logger.info("deactivated the pool of %s", store.layout.root)

    @contextmanager
    def opened(self, layer: str) -> Iterator[int]:
        """Yield a descriptor of the root of a detached mount of a layer. Raise NotFound."""
        with self.store.layers.opened(layer) as root:
            yield root

    def maintain(self) -> None:
        """Finish removals that waited for the last user of a device; extend the pool if it is above its threshold."""
        if (store := self._store) is None:
            return
        store.recover()
        if store.pool.extend_if_due():
            report = store.pool.status()
            logger.info("extended the pool: data %d, metadata %d bytes", report.data_size, report.metadata_size)

    def _adopt(self, store: Store) -> Store:
        """Queue the background work that an earlier process left undone."""
        with suppress(DmthinError):
            store.cleanup.deactivate_idle(Kind.IMAGE, Kind.CONTAINER)
        return store

    def _require_same_home(self, home: Path) -> None:
        """Raise InUse for an Init by a second dockerd: other requests do not identify the daemon that sent them."""
        if self._store is None or self._init is None or self._init.home == home:
            return
        if self._store.layers.mounted():
            raise InUse(
                f"this socket serves the dockerd of {self._init.home.parent}, which has layers mounted",
                hint=f"use another socket for the dockerd of {home.parent}: dmthin serve --docker SOCKET",
            )

    def _save_state(self, request: InitRequest) -> None:
        content = {"home": os.fspath(request.home), "uid_ranges": request.uid_ranges, "gid_ranges": request.gid_ranges}
        self._state_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._state_file.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.rename(self._state_file)

    def _wait_until_made(self, layer: str) -> Volume | None:
        """Wait for a creation of the layer that is in progress. Return the layer, None if the creation failed."""
        volume = self.store.ledger.find(layer)
        if volume is not None and volume.state is State.MAKING:
            self.store.locks.volume(volume.device_id).release()  # acquired once its creator has released it
            volume = self.store.ledger.find(layer)
        return volume

    def _chown_root(self, layer: str) -> None:
        """Set the owner of a first layer's root directory to the containers' root, if ids are mapped."""
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
    """Return the host's id of the containers' id 0."""
    for inside, outside, count in ranges:
        if inside <= 0 < inside + count:
            return outside - inside
    return 0


def _is_repeated(volume: Volume, kind: Kind, parent: Volume | None, size: int | None) -> bool:
    """Return whether an identical request has created `volume`: dockerd repeats a request whose response was lost."""
    if volume.state is not State.READY or volume.kind is not kind:
        return False
    if parent is not None and volume.parent != parent.device_id:
        return False
    return size is None or volume.size == size
