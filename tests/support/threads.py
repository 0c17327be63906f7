"""Many threads that do something at the same time."""

import threading
from collections.abc import Callable


def in_threads(count: int, action: Callable[[int], object]) -> None:
    """Do `action` with each number below `count`, each in a thread of its own; none may fail."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            action(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
