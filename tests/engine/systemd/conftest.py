"""The system that these tests boot: `--system`, as `scripts/test` gives it, or this machine's own release."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", default="bookworm", help="the Debian release to boot")


@pytest.fixture
def system(request: pytest.FixtureRequest) -> str:
    """The name of a Debian release."""
    return str(request.config.getoption("--system"))
