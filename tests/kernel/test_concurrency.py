"""Many at once on one store: threads that share it, processes that open it, an administrator beside them."""

import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from dmthin.store.store import Store
from dmthin.units import GIB
from tests.kernel.conftest import check_store


def in_processes(root: Path, *actions: Callable[[Store], object]) -> None:
    """Run each action in a process with a Store of its own, all at once; none may fail."""
    pids = []
    for action in actions:
        pid = os.fork()
        if not pid:
            try:
                with Store(root) as store:
                    action(store)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def test_fifty_containers_at_once_from_threads(store: Store, image: str) -> None:
    failures: list[BaseException] = []

    def create(number: int) -> None:
        try:
            store.containers.create(image, f"c{number}")
            (store.containers.mount(f"c{number}") / "me").write_text(str(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(50):
        assert (store.layout.mount_point(f"c{number}") / "me").read_text() == str(number)


def test_processes_work_side_by_side_while_the_pool_grows_and_is_trimmed(store: Store, image: str) -> None:
    root = store.layout.root
    store.ledger.close()

    def worker(number: int) -> Callable[[Store], None]:
        def work(store: Store) -> None:
            for turn in range(6):
                name = f"w{number}-{turn}"
                store.containers.create(image, name)
                place = store.containers.mount(name)
                (place / "data").write_bytes(bytes([number]) * 300_000)
                assert (place / "etc/motd").read_text() == "hello\n"
                store.containers.unmount(name)
                if turn % 2:
                    store.images.commit(name, f"i{number}-{turn}")
                store.containers.remove(name)

        return work

    def administrator(store: Store) -> None:
        for turn in range(3):
            store.pool.extend(data_size=(5 + turn) * GIB)
            store.pool.trim()
            store.pool.usage()

    in_processes(root, *(worker(number) for number in range(4)), administrator)
    with Store(root) as now:
        assert now.pool.status().data_size == 7 * GIB
        assert sum(volume.kind == "image" for volume in now.ledger.volumes()) == 1 + 4 * 3
        check_store(now)


def test_one_name_has_one_winner(store: Store, image: str) -> None:
    root = store.layout.root
    store.ledger.close()

    def race(store: Store) -> None:
        from dmthin.errors import AlreadyExists

        try:
            store.containers.create(image, "web")
        except AlreadyExists:
            (root.parent / f"lost-{os.getpid()}").touch()

    in_processes(root, *[race] * 6)
    assert len(list(root.parent.glob("lost-*"))) == 5
    assert len([volume for volume in store.ledger.volumes() if volume.name == "web"]) == 1


def test_one_base_is_made_by_one_of_many(store: Store, tree: Path) -> None:
    root = store.layout.root
    store.ledger.close()

    def importing(number: int) -> Callable[[Store], object]:
        return lambda store: store.images.import_(f"image{number}", tree)

    in_processes(root, *(importing(number) for number in range(4)))
    assert [volume.name for volume in store.ledger.volumes() if volume.kind == "base"] == ["@base/ext4/256M"]
