"""What every tier needs."""

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let signals do what they do in a terminal: nohup and background jobs hand down ignored ones, to children too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
