"""The Diff service: layers made of snapshots, also of those in use, and layers unpacked into snapshots.

containerd names snapshots by their mounts, and expects blobs in its content store. The semantics are those of its own
differ (plugins/diff/walking/differ.go and core/diff/apply/apply.go, github.com/containerd/containerd).
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dmthin.blocking import InThread, entered, finished
from dmthin.containerd import diff_messages as messages
from dmthin.containerd import keys, media_types
from dmthin.containerd.content import LEASE_HEADER, NAMESPACE_HEADER, UNCOMPRESSED, ContentStore, connected
from dmthin.containerd.snapshotter import Snapshotter
from dmthin.errors import AlreadyExists, DmthinError, InUse, InvalidValue
from dmthin.kernel import block
from dmthin.layers.job import Job, TarDigest, Verb, parse_tar
from dmthin.layers.running import started
from dmthin.store.state.model import Snapshot, SnapshotKind

logger = logging.getLogger(__name__)

Headers = Mapping[str, Any]
"""The metadata of a call."""

LEASE_LIFETIME = timedelta(hours=1)
"""How long a new blob is kept for a client that has not referred to it yet."""

_WORKERS = max(2, os.cpu_count() or 1)
"""Layers that are made or unpacked at a time, each by a worker that keeps one processor busy."""

_CLEAN_UP_SECONDS = 10.0
"""How long a call that has failed or was cancelled waits for containerd to remove what was written."""

_NANOSECONDS = 1_000_000_000


class NextDiffer(Exception):
    """The request is not for dmthin: containerd asks its next differ after the status UNIMPLEMENTED."""


@dataclass(frozen=True, slots=True)
class Located:
    """The snapshot that a mount is of."""

    snapshotter: Snapshotter
    snapshot: Snapshot


class DiffService:
    """The service on the snapshots of one daemon. `snapshotters` returns them, `address` is containerd's socket."""

    def __init__(
        self, snapshotters: Callable[[], Awaitable[Sequence[Snapshotter]]], in_thread: InThread, address: Path
    ) -> None:
        self._snapshotters = snapshotters
        self._in_thread = in_thread
        self._address = address
        self._workers = asyncio.Semaphore(_WORKERS)

    async def diff(self, request: Any, headers: Headers) -> Any:
        """Write the changes from the mounts `left` to the mounts `right` as a blob; return a DiffResponse.

        Raise NextDiffer, InvalidValue, NoDataSpace, NoMetadataSpace, and what the worker and ContentStore raise.
        """
        media_type = request.media_type or media_types.DEFAULT
        compression = media_types.compression_of(media_type)
        if compression is None:
            raise NextDiffer(f"the media type {media_type}")
        upper = await self._located(request.right)
        lower = await self._located(request.left) if request.left else None
        epoch = request.source_date_epoch if request.HasField("source_date_epoch") else None
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._workers)
            root = await stack.enter_async_context(self._frozen(upper))
            parent = await stack.enter_async_context(self._frozen(lower)) if lower else None
            job = Job(
                Verb.DIFF,
                root,
                upper.snapshot.title,
                parent,
                compression=compression,
                digest=True,
                whiteout_ns=0,
                newest_ns=epoch.seconds * _NANOSECONDS + epoch.nanos if epoch is not None else None,
            )
            store = await stack.enter_async_context(self._store(upper, headers))
            digest, size = await self._write(store, job, request.ref, dict(request.labels))
        logger.info("made the layer %s of the %s: %d bytes", digest, upper.snapshot.title, size)
        return messages.DiffResponse(diff=messages.Descriptor(media_type=media_type, digest=digest, size=size))

    async def apply(self, request: Any, headers: Headers) -> Any:
        """Unpack the blob `diff` into the snapshot of `mounts`; return an ApplyResponse with the uncompressed layer.

        Everything has been written to the volume then. Raise NextDiffer, InvalidValue (a damaged layer, or a blob that
        does not match its descriptor), InUse (the snapshot is not active), and what the worker and ContentStore raise.
        """
        blob = request.diff
        if not media_types.is_layer(blob.media_type):
            raise NextDiffer(f"the media type {blob.media_type}")
        target = await self._located(request.mounts)
        if target.snapshot.kind is not SnapshotKind.ACTIVE:
            raise InUse(f"the {target.snapshot.title} cannot be written", hint="prepare an active snapshot")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._workers)
            opened = target.snapshotter.opened(target.snapshot)
            root = await stack.enter_async_context(entered(opened, self._in_thread))
            store = await stack.enter_async_context(self._store(target, headers))
            job = Job(Verb.APPLY, root, f"layer {blob.digest}", digest=True)
            tar = await _unpack(store, job, blob)
            await self._in_thread(block.sync_root, root, target.snapshot.title)
        logger.info("unpacked the layer %s into the %s", blob.digest, target.snapshot.title)
        applied = messages.Descriptor(media_type=media_types.OCI, digest=tar.digest, size=tar.size)
        return messages.ApplyResponse(applied=applied)

    async def _located(self, mounts: Sequence[Any]) -> Located:
        """Return the snapshot of a list of mounts. Raise NextDiffer if it is none of this daemon's."""
        snapshotters = await self._snapshotters()
        found: Located | None = await self._in_thread(_locate, snapshotters, mounts)
        if found is None:
            raise NextDiffer(f"the mounts of {', '.join(mount.source for mount in mounts) or 'nothing'}")
        return found

    def _frozen(self, located: Located) -> Any:
        return entered(located.snapshotter.frozen(located.snapshot), self._in_thread)

    def _store(self, located: Located, headers: Headers) -> Any:
        namespace = headers.get(NAMESPACE_HEADER) or _namespace(located.snapshot.key)
        return connected(self._address, namespace, headers.get(LEASE_HEADER, ""))

    async def _write(self, store: ContentStore, job: Job, ref: str, labels: dict[str, str]) -> tuple[str, int]:
        """Write the layer of a job into the content store; return its digest and size.

        The blob stays in a lease until that expires: a client that has no lease, or whose lease containerd did not
        pass on, needs time to refer to it.
        """
        leased = bool(store.lease)
        if not leased:
            await store.create_lease(LEASE_LIFETIME)
        own_ref = ref or f"dmthin-diff-{os.urandom(8).hex()}"
        try:
            return await _write(store, job, own_ref, labels)
        except BaseException:
            await finished(_clean_up(store, "" if ref else own_ref, leased=leased))
            raise


async def _write(store: ContentStore, job: Job, ref: str, labels: dict[str, str]) -> tuple[str, int]:
    blob, digest = hashlib.sha256(), ""
    async with started(job, reads=True) as running:
        try:
            async with store.writer(ref) as writer:
                while piece := await running.read():
                    blob.update(piece)
                    await writer.write(piece)
                tar = parse_tar(await running.report())
                digest, labels = f"sha256:{blob.hexdigest()}", labels | {UNCOMPRESSED: tar.digest}
                await writer.commit(digest, labels)
        except AlreadyExists:
            if not digest:
                raise
            await store.hold(digest)
            await store.add_labels(digest, labels)
    return digest, writer.size


async def _clean_up(store: ContentStore, ref: str, *, leased: bool) -> None:
    """Remove what a failed write has left. What cannot be removed now expires with the lease."""
    with suppress(DmthinError, TimeoutError):
        async with asyncio.timeout(_CLEAN_UP_SECONDS):
            if ref:
                await store.abort(ref)
            if not leased:
                await store.delete_lease()


async def _unpack(store: ContentStore, job: Job, blob: Any) -> TarDigest:
    """Feed a blob to a worker, and verify it. Return the tar in it. Raise InvalidValue, and what the worker reports."""
    compressed, size = hashlib.sha256(), 0
    async with started(job, feeds=True) as running, aclosing(store.read(blob.digest)) as pieces:
        async for piece in pieces:
            compressed.update(piece)
            size += len(piece)
            if not await running.feed(piece):
                break
        running.end_input()
        tar = parse_tar(await running.report())
    if (blob.size and size != blob.size) or blob.digest != f"sha256:{compressed.hexdigest()}":
        raise InvalidValue(
            f"the content of {blob.digest} has {size} bytes and the digest sha256:{compressed.hexdigest()}",
            hint="containerd's content store is damaged: remove the image and pull it again",
        )
    return tar


def _locate(snapshotters: Sequence[Snapshotter], mounts: Sequence[Any]) -> Located | None:
    """Return the snapshot that the mounts are of, None if they are not one mount of a snapshot of these."""
    if len(mounts) != 1:
        return None
    (mount,) = mounts
    if not mount.source.startswith("/dev/") or any("idmap" in option or "uidmap" in option for option in mount.options):
        return None
    for snapshotter in snapshotters:
        snapshot = snapshotter.at(Path(mount.source))
        if snapshot is not None and snapshot.volume.file_system == mount.type:
            return Located(snapshotter, snapshot)
    return None


def _namespace(key: str) -> str:
    """Return the namespace in a snapshot's key. Raise InvalidValue if there is none."""
    namespace, _ = keys.parse(key)
    if not namespace:
        raise InvalidValue(f"the snapshot {key!r} has no namespace", hint=f"send it in the header {NAMESPACE_HEADER}")
    return namespace
