"""The Diff service without a store and a containerd: media types, cancelled calls, a containerd that is not there."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmthin.blocking import entered, finished
from dmthin.containerd.content import connected
from dmthin.containerd.diff import _namespace
from dmthin.containerd.media_types import DEFAULT, DOCKER, OCI, compression_of, is_layer
from dmthin.errors import InvalidValue, Unavailable
from enginelib.waiting import PATIENCE


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI, ""),
        (f"{OCI}+gzip", "gzip"),
        (f"{OCI}+zstd", "zstd"),
        (DOCKER, ""),
        (f"{DOCKER}.gzip", "gzip"),
        (f"{DOCKER}.zstd", "zstd"),
        (DEFAULT, "gzip"),
        ("", None),
        (f"{OCI}+", None),
        (f"{OCI}.gzip", None),
        (f"{OCI}+gzip+encrypted", None),
        (f"{DOCKER}+gzip", None),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", None),
        ("application/vnd.oci.image.manifest.v1+json", None),
    ],
)
def test_media_types_of_layers_that_are_written(media_type: str, compression: str | None) -> None:
    assert compression_of(media_type) == compression


@pytest.mark.parametrize(
    ("media_type", "known"),
    [
        (OCI, True),
        (f"{DOCKER}.gzip", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        (f"{OCI}+gzip+encrypted", False),
        ("application/vnd.in-toto+json", False),
        ("", False),
    ],
)
def test_media_types_of_layers_that_are_unpacked(media_type: str, *, known: bool) -> None:
    assert is_layer(media_type) is known


def test_the_namespace_of_a_snapshot() -> None:
    assert _namespace("moby/12/sha256:abc") == "moby"
    assert _namespace("k8s.io/5/a/b/c") == "k8s.io"


@pytest.mark.parametrize("key", ["web", "/12/web", "moby/web/12", "moby/"])
def test_a_key_without_a_namespace(key: str) -> None:
    with pytest.raises(InvalidValue, match="has no namespace"):
        _namespace(key)


class Steps:
    """A blocking context manager that waits for permission to be entered, and keeps what happens to it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.entering, self.may_enter = threading.Event(), threading.Event()
        self.happened: list[str] = []
        self._fails = fails

    @contextmanager
    def context(self) -> Iterator[int]:
        self.entering.set()
        assert self.may_enter.wait(PATIENCE)
        if self._fails:
            raise InvalidValue("it cannot be entered")
        self.happened.append("entered")
        try:
            yield 5
        finally:
            self.happened.append("left")


def in_loop(main: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_context_is_entered_and_left_in_threads() -> None:
    steps = Steps()
    steps.may_enter.set()

    async def main() -> None:
        async with entered(steps.context(), asyncio.to_thread) as value:
            assert (value, steps.happened) == (5, ["entered"])

    in_loop(main)
    assert steps.happened == ["entered", "left"]


def test_a_context_that_cannot_be_entered() -> None:
    steps = Steps(fails=True)
    steps.may_enter.set()

    async def main() -> None:
        async with entered(steps.context(), asyncio.to_thread):
            steps.happened.append("never")

    with pytest.raises(InvalidValue, match="cannot be entered"):
        in_loop(main)
    assert steps.happened == []


@pytest.mark.parametrize("cancellations", [1, 3])
def test_what_is_cancelled_while_it_is_entered_is_left(cancellations: int) -> None:
    """Without that a frozen snapshot would stay for as long as the daemon runs."""
    steps = Steps()

    async def use() -> None:
        async with entered(steps.context(), asyncio.to_thread):
            steps.happened.append("never")

    async def main() -> None:
        task = asyncio.ensure_future(use())
        await asyncio.to_thread(steps.entering.wait)
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0)
        steps.may_enter.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(main)
    assert steps.happened == ["entered", "left"]


def test_work_that_must_be_finished() -> None:
    async def fails() -> None:
        raise InvalidValue("no")

    async def five() -> int:
        return 5

    async def main() -> None:
        assert await finished(five()) == 5
        with pytest.raises(InvalidValue):
            await finished(fails())

    in_loop(main)


@pytest.mark.parametrize("there", ["nothing", "a socket without a listener", "a listener that hangs up"])
def test_a_containerd_that_is_not_there(tmp_path: Path, there: str) -> None:
    address = tmp_path / "socket"
    listening = socket.socket(socket.AF_UNIX)
    if there != "nothing":
        listening.bind(str(address))

    def hang_up() -> None:
        connection, _ = listening.accept()
        connection.recv(1)
        connection.close()

    async def main() -> None:
        async with connected(address, "default") as store:
            with pytest.raises(Unavailable, match=str(address)):
                await store.abort("ref")
            with pytest.raises(Unavailable, match=str(address)):
                async for _ in store.read("sha256:0"):
                    pass
            with pytest.raises(Unavailable, match=str(address)):
                async with store.writer("ref") as writer:
                    await writer.write(b"data")

    with listening:
        if there == "a listener that hangs up":
            listening.listen()
            for _ in range(3):
                threading.Thread(target=hang_up, daemon=True).start()
        in_loop(main)
