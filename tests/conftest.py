"""What every tier needs."""

import os
import signal
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.queue import SharedQueue

examples.register()


def pytest_configure(config: pytest.Config) -> None:
    """Let signals do what they do in a terminal: nohup and background jobs hand down ignored ones, to children too.

    And share the tests with other processes where `scripts/test` runs several.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    if folder := os.environ.pop("DMTHIN_TEST_QUEUE", ""):  # not for the pytest that a test starts in a guest
        stays = bool(os.environ.get("DMTHIN_TEST_STAYS"))
        config.pluginmanager.register(SharedQueue(Path(folder), stays=stays))
