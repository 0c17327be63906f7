"""Volumes as the store makes, activates, mounts and removes them: each change one transaction between ledger and pool.

A change writes its intent (a record that is not READY, its volume's lock held), sends the pool's message, and writes
the result. An intent whose lock is free was left by a process that died, and `Recovery` ends it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InvalidValue,
    NeedsRepair,
    NoDataSpace,
    NotFound,
    PartlyDone,
)
from dmthin.kernel import block, mount
from dmthin.kernel.devicemapper import DeviceInfo, DeviceMapper
from dmthin.pool import filesystem
from dmthin.pool.volume import ThinVolume
from dmthin.store.config.layout import Layout
from dmthin.store.config.options import StorageOptions
from dmthin.store.state.ledger import Ledger
from dmthin.store.state.locks import Lock, Locks
from dmthin.store.state.model import NewVolume, State, Volume
from dmthin.store.state.snapshot_table import SnapshotTable
from dmthin.store.volumes import busy
from dmthin.store.volumes.change import ActivePool, Change, Made, Record, no_record
from dmthin.store.volumes.mounter import Mounter
from dmthin.units import MIB, format_exact, format_size

logger = logging.getLogger(__name__)

_LEAST_HOST_FREE = 32 * MIB
"""Bytes free below sparse files without which no volume is made: a snapshot itself writes metadata."""


class Volumes:
    """The volumes of one store, without regard to what they are for. `change` is the store's (`Store.change`)."""

    def __init__(
        self, layout: Layout, ledger: Ledger, locks: Locks, dm: DeviceMapper, options: StorageOptions, change: Change
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._locks = locks
        self._dm = dm
        self._options = options
        self._change = change
        self._names = ledger.store()  # for the names of devices, which a store never changes
        self._mounter = Mounter(layout, options)
        self._keys = SnapshotTable(ledger)

    def make(
        self,
        new: NewVolume,
        *,
        origin: Volume | None = None,
        activate: bool = False,
        record: Record = no_record,
    ) -> Made:
        """Make a volume that needs nothing done to it: a snapshot of `origin`, by default its parent, as that is.

        The block device comes after the last commit: what udevd has to do about it then holds up nobody who waits
        for that. The rest is as for `making`.
        """
        origin = origin or new.parent
        with self._turn(origin) as turn, ExitStack() as held, self._change() as pool:
            volume = self._begin(pool, held, new)
            with self._ending_on_failure(volume, pool):
                self._create(pool, volume, origin, turn)
                self._finish(volume, record)
            volume = volume.with_state(State.READY)
            return Made(volume, self._activate_made(pool, volume) if activate else None)

    @contextmanager
    def making(self, new: NewVolume, *, activate: bool = False, record: Record = no_record) -> Iterator[Volume]:
        """Make a volume: a snapshot of its parent, or empty; READY when the block ends well.

        Whatever ends the block otherwise, or this process, leaves no volume. `activate` makes its block device at once.
        `record` does what belongs into the transaction that ends it. Who calls keeps others from mounting the origin
        meanwhile.
        Raises AlreadyExists (the name), NotFound (the parent is gone), NoDataSpace.
        """
        with ExitStack() as held:
            with self._turn(new.parent) as turn, self._change() as pool:
                volume = self._begin(pool, held, new)
                with self._ending_on_failure(volume, pool):
                    self._create(pool, volume, new.parent, turn)
                    if activate:
                        self._activate(pool, volume)
            with self._ending_on_failure(volume):
                yield volume
                self._finish(volume, record)

    def remove(self, volume: Volume, *, force: bool = False, orphaning: bool = False) -> None:
        """Remove a volume and give its space back.

        Raises InUse for one that is mounted, open or, unless that is `orphaning` them, has children. With `force` a
        mount is detached lazily and the rest is left to the last user's end, if dm.use_deferred_deletion allows.
        """
        self.begin_removal(volume, force=force, orphaning=orphaning)()

    def begin_removal(self, volume: Volume, *, force: bool = False, orphaning: bool = False) -> Callable[[], None]:
        """`remove` up to where the volume is gone for everybody, and durably so; what this returns does the rest.

        That holds the volume's lock until it has been called, once.
        """
        require_no_children = (lambda _: None) if orphaning else self._ledger.require_childless
        with ExitStack() as held:
            volume = held.enter_context(self.locked(volume))
            with self._change() as pool:
                thin = self.thin(pool, volume)
                require_no_children(volume)
                if force and self._options.deferred_deletion:
                    busy.detach(thin.info())
                else:
                    busy.require_unused(volume, thin.info())
                with self._ledger.transaction(f"remove {volume.name}"):
                    require_no_children(volume)
                    doomed = self._doom(volume)
                self.drop_mount_point(volume)
            rest = held.pop_all()

        def finish() -> None:
            with rest, self._change() as pool:
                self.end(pool, doomed)

        return finish

    def activate(self, volume: Volume) -> DeviceInfo:
        """Make the block device of a volume, or find it made."""
        with self._change() as pool:
            return self._activate(pool, volume)

    def ready_device(self, volume: Volume) -> DeviceInfo:
        """The device that was made with a volume, or again if it is gone. Raises what `make` does for want of space."""
        with self._change() as pool:
            self._require_room(pool)
            info = self.thin(pool, volume).info()
            if info is None or not info.live_table or info.suspended or info.deferred_remove:
                return self._activate(pool, volume)
            return info

    def deactivate(self, volume: Volume) -> bool:
        """Remove the block device. False: it is busy and goes with its last user, as dm.use_deferred_removal allows."""
        with self._change() as pool:
            return self.thin(pool, volume).deactivate(deferred=self._options.deferred_removal)

    def mount(self, volume: Volume, target: Path) -> Path:
        """Mount a volume at a folder, which is made if need be; a mount of it that is there already will do."""
        with self.locked(volume) as volume:
            return self._mount(volume, target)

    def unmount(self, volume: Volume, *, force: bool = False) -> bool:
        """Unmount a volume wherever this namespace has it, and remove its device. False if it was not mounted.

        Raises InUse, which names the holders; with `force` the mounts are detached lazily.
        """
        with self.locked(volume) as volume:
            info = self.info(volume)
            if info is None:
                return False
            mounts = mount.of_device(info.dev)
            for entry in reversed(mounts):
                busy.unmount(volume, info, Path(entry.target), lazy=force)
            self.drop_mount_point(volume)
            self.deactivate(volume)
            return bool(mounts)

    @contextmanager
    def mounted_for_work(self, volume: Volume) -> Iterator[Path]:
        """A volume that nobody else uses, mounted at a place of its own for a moment and inactive afterwards."""
        target = self._mount(volume, self._layout.work_point(volume.device_id))
        try:
            yield target
        finally:
            mount.unmount(target)
            with suppress(OSError):
                target.rmdir()
            self.deactivate(volume)

    def grow(self, volume: Volume, size: int) -> Volume:
        """Let a volume and its file system have `size` bytes; mounted or not. Raises InvalidValue for less than now."""
        with self.locked(volume) as volume:
            if size < volume.size:
                raise InvalidValue(
                    f"the {volume.title} has {format_exact(volume.size)} and cannot shrink to {format_exact(size)}",
                    hint="a volume only grows",
                )
            filesystem.by_name(volume.file_system).require_size(size)
            with self._change() as pool:
                pool.thin.require_data_space(0)
            busy.require_not_open_elsewhere(volume, lambda: self.info(volume))
            larger = replace(volume, size=size, state=State.GROWING)
            with self._ledger.transaction(f"grow {volume.name}"):
                self._ledger.save(larger)
            return self.finish_growth(larger)

    def fill_device(self, volume: Volume) -> None:
        """Let the file system of a volume fill its device, wherever that is mounted."""
        kind = filesystem.by_name(volume.file_system)
        info = self.activate(volume)
        work = str(self._layout.work_point(volume.device_id))
        if users := [entry.target for entry in mount.of_device(info.dev) if entry.target != work]:
            kind.grow(info.node, Path(users[-1]))
            return
        with self.mounted_for_work(volume) as target:
            kind.grow(info.node, target)

    def is_pool_up(self) -> bool:
        """Whether the pool is there; a change would bring it up otherwise."""
        try:
            return self._dm.info(self._names.pool_name).live_table
        except NotFound:
            return False

    def info(self, volume: Volume) -> DeviceInfo | None:
        """The kernel's view of a volume, None while it is not active."""
        name, uuid = self._name_and_uuid(volume)
        try:
            info = self._dm.info(name)
        except NotFound:
            return None
        if not uuid.startswith(info.uuid):
            raise AlreadyExists(f"the device {name} is held by another store", hint="use that store")
        return info

    def thin(self, pool: ActivePool, volume: Volume) -> ThinVolume:
        """The volume as a device of the pool."""
        return ThinVolume(pool.thin, volume.device_id, volume.size, *self._name_and_uuid(volume), self._dm)

    def _name_and_uuid(self, volume: Volume) -> tuple[str, str]:
        """What the kernel calls a volume's device."""
        names, number = self._names, volume.device_id
        return names.device_name(number), f"{names.device_uuid(number)}-{self._layout.identity}"

    def _mount(self, volume: Volume, target: Path) -> Path:
        busy.require_not_open_elsewhere(volume, lambda: self.info(volume))
        return self.mount_locked(volume, target)

    def mount_locked(self, volume: Volume, target: Path, options: str = "") -> Path:
        """`mount` for who holds the volume's lock and knows who has it open; with mount options of this time only."""
        with self.held_open(volume) as info:
            self._mounter.mount(volume, info, target, options)
        return target

    def mount_detached(self, volume: Volume) -> int:
        """Mount a volume where nobody sees it: a descriptor of its root, which is mounted until that is closed."""
        with self.held_open(volume) as info:
            return self._mounter.mount_detached(volume, info)

    def drop_mount_point(self, volume: Volume) -> None:
        """Remove the folder at which a volume was mounted; copies of the mount in other namespaces go with it."""
        self._mounter.drop(volume)

    def finish_growth(self, volume: Volume) -> Volume:
        """Make the device and the file system as large as the record says; the record is READY whatever comes of it.

        A file system that cannot be grown keeps the volume usable, so it is not tried again at every change.
        """
        try:
            self.fill_device(volume)
        except DmthinError as error:
            raise PartlyDone(
                f"the {volume.title} has {format_exact(volume.size)} now, but its file system is not grown: {error}",
                hint="run the same resize again",
            ) from None
        finally:
            ready = volume.with_state(State.READY)
            with self._ledger.transaction(f"grown {volume.name}"):
                self._ledger.save(ready)
        return ready

    @contextmanager
    def held_open(self, volume: Volume) -> Iterator[DeviceInfo]:
        """A volume's device, active and open meanwhile: the number N of /dev/dm-N cannot become another's."""
        with ExitStack() as held:
            with self._change() as pool:
                info = self._activate(pool, volume)
                held.enter_context(block.opened(Path(info.node)))
            yield info

    def write_out(self, volume: Volume) -> None:
        """Write what a mounted volume has in memory to the pool; may wait for that, so no lock but the volume's."""
        if (info := self.info(volume)) and (mounts := mount.of_device(info.dev)):
            block.sync_file_system(Path(mounts[0].target))

    def _activate(self, pool: ActivePool, volume: Volume) -> DeviceInfo:
        return self.thin(pool, volume).activate(pool.number, read_only=volume.read_only)

    def _activate_made(self, pool: ActivePool, volume: Volume) -> DeviceInfo:
        """The device of a volume that is READY just now; without it the volume does not stay either."""
        try:
            return self._activate(pool, volume)
        except BaseException:
            with self._ledger.transaction(f"remove {volume.name}"):
                doomed = self._doom(volume)
            self._try_to_end(pool, doomed)
            raise

    def _begin(self, pool: ActivePool, held: ExitStack, new: NewVolume) -> Volume:
        """Record the intent of a volume for which there is room; `held` gets its lock."""
        self._require_room(pool)
        with self._ledger.transaction(f"make {new.name}"):
            added = self._ledger.add(new, self._locks)
            held.enter_context(added.lock)
        return added.volume

    def _finish(self, volume: Volume, record: Record) -> None:
        """The last transaction of a volume that is made."""
        with self._ledger.transaction(f"made {volume.name}"):
            record(self._ledger.mark(volume, State.READY))

    def _doom(self, volume: Volume) -> Volume:
        """Let a volume be gone for everybody but who ends it. Inside of a transaction."""
        doomed = replace(volume, name=f"@removing/{volume.device_id}", state=State.REMOVING)
        self._ledger.save(doomed)
        self._keys.forget(doomed)
        return doomed

    def _create(self, pool: ActivePool, volume: Volume, origin: Volume | None, turn: Lock | None) -> None:
        """Send the pool's message, the origin at rest if we have the `turn`.

        A device id that is there already is not ours, so only its record goes again.
        """
        with self.thin(pool, origin).quiesced(turn.fd) if origin and turn else nullcontext():
            try:
                if origin is None:
                    pool.thin.create_thin(volume.device_id)
                else:
                    pool.thin.create_snap(volume.device_id, origin.device_id)
            except AlreadyExists:
                with self._ledger.transaction(f"forget {volume.name}"):
                    self._ledger.forget(volume)
                raise NeedsRepair(
                    f"the pool has a volume {volume.device_id} that the ledger does not know",
                    hint="the ledger was restored from an old copy, or another program has changed the pool",
                ) from None

    def _turn(self, origin: Volume | None) -> AbstractContextManager[Lock | None]:
        """Our turn to hold the I/O of a volume in use, which others who share it may want too; None if it has none.

        To be waited for before the pool is shared: whoever is to give it space must not wait for us.
        """
        if origin and (info := self.info(origin)) and info.in_use:
            return self._locks.rest(origin.device_id)
        return nullcontext()

    @contextmanager
    def _ending_on_failure(self, volume: Volume, pool: ActivePool | None = None) -> Iterator[None]:
        """Remove a volume that is being made if the block fails; what cannot be removed now, the next sweep will."""
        try:
            yield
        except BaseException:
            self._try_to_end(pool, volume)
            raise

    def _try_to_end(self, pool: ActivePool | None, volume: Volume) -> None:
        """End a volume on the way out of a failure, which is told and not this one's.

        A pool that somebody has taken down is not brought up for that: the next change does both.
        """
        try:
            if pool or self.is_pool_up():
                with nullcontext(pool) if pool else self._change() as active:
                    self.end(active, volume)
        except DmthinError as error:
            logger.warning("the unfinished %s stays for now: %s", volume.title, error)

    def end(self, pool: ActivePool, volume: Volume, *, patient: bool = True) -> None:
        """Remove whatever there is of a volume, the ledger's record last. The caller holds its lock.

        A device that somebody still has open is left with its record, for the next sweep; `patient` waits a little
        for it first.
        """
        if (now := self._ledger.by_id(volume.device_id)) is None:
            return
        thin = self.thin(pool, volume)
        work = self._layout.work_point(volume.device_id)
        if info := thin.info():
            busy.detach(info)
        with suppress(OSError):
            work.rmdir()
        # A read-only volume has its origin's blocks, but for a replayed journal; so has a new one while that is there.
        has_blocks = volume.state is State.REMOVING or now.parent != volume.parent
        discard = has_blocks and self._options.discard and not volume.read_only
        if discard and not (info and info.open_count):
            with suppress(NotFound):
                thin.activate(pool.number)
                thin.discard_all()
        if not thin.deactivate(deferred=True, patient=patient):
            logger.info("the %s is still in use and goes with its last user", volume.title)
            return
        pool.thin.delete(volume.device_id)
        # A record that a power cut brings back is of a volume that the pool does not have, and ends again.
        with self._ledger.transaction(f"forget {volume.name}", durable=False):
            self._ledger.forget(volume)

    def _require_room(self, pool: ActivePool) -> None:
        """Raise NoDataSpace or NoMetadataSpace where the pool has no room for one more volume.

        Nor where sparse files have none left below them: the pool would meet a failing disk.
        """
        pool.thin.require_data_space(self._options.min_free_percent)
        if not pool.record.data or not self._layout.data(pool.record).is_file:
            return
        free = block.free_space(self._layout.root)
        if free < _LEAST_HOST_FREE:
            raise NoDataSpace(
                f"the file system below {self._layout.root} has only {format_size(free)} free",
                hint="free some space there, or run: dmthin pool trim",
            )

    @contextmanager
    def unchanged(self, volume: Volume) -> Iterator[None]:
        """Meanwhile nobody mounts, unmounts or removes a volume, but others may hold it unchanged as well."""
        with self._locks.share_volume(volume.device_id):
            yield

    @contextmanager
    def locked(self, volume: Volume) -> Iterator[Volume]:
        """The volume as it is once its lock is held. Raises NotFound if another has removed it meanwhile."""
        with self._locks.volume(volume.device_id):
            now = self._as_it_is(volume)
            if now.state is State.GROWING:
                now = self.finish_growth(now)
            yield now

    @contextmanager
    def locked_if_free(self, volume: Volume) -> Iterator[Volume | None]:
        """`locked` for who must not wait: None while another has the lock."""
        lock = self._locks.try_volume(volume.device_id)
        with lock or nullcontext():
            now = self._as_it_is(volume)
            yield now if lock else None

    def _as_it_is(self, volume: Volume) -> Volume:
        now = self._ledger.by_id(volume.device_id)
        if now is None or now.name != volume.name or now.state in (State.MAKING, State.REMOVING):
            raise NotFound(f"the {volume.title} has been removed meanwhile")
        return now
