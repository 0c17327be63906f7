"""The engines that the guest has, each started once for all tests; in the end nothing is left of them."""

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from enginelib.daemons import SYSTEM, mini_rootfs, tar_of
from tests.engine.matrix import podmans
from tests.engine.matrix.base import Engine
from tests.engine.matrix.engines import all_engines
from tests.engine.matrix.report import Report

IMAGE = "contract"
collect_ignore = [] if SYSTEM == "" and podmans.version() else ["test_podman.py"]
"""podman is unpacked for this machine's own release."""


def pytest_configure(config: pytest.Config) -> None:
    if folder := os.environ.get("DMTHIN_VM_OUT"):
        config.pluginmanager.register(Report(Path(folder)))


@pytest.fixture(scope="package")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three layers: the upper two add, change and remove what is below."""
    second: dict[str, bytes | None] = {
        "srv/old/.wh.file": b"",
        "srv/new": b"of the second\n",
        "srv/hidden": None,
        "srv/hidden/a": b"",
        "etc/motd": b"changed\n",
    }
    third: dict[str, bytes | None] = {".wh.tmp": b"", "srv/hidden/.wh.a": b"", "srv/hidden/c": b"of the third\n"}
    return [mini_rootfs(tmp_path_factory.mktemp("mini")), tar_of(second), tar_of(third)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with each engine of the guest that is of the kind which the test's argument has."""
    if "the_engine" in metafunc.fixturenames:
        wanted = metafunc.function.__annotations__.get("engine", Engine)
        found = {column: kind for column, kind in all_engines().items() if issubclass(kind, wanted)}
        metafunc.parametrize("the_engine", list(found.items()), ids=list(found), indirect=True, scope="package")


@pytest.fixture(scope="package")
def the_engine(request: pytest.FixtureRequest, layers: list[bytes]) -> Iterator[Engine]:
    column, kind = request.param
    engine: Engine = kind(f"matrix-{column.partition(' ')[0]}")
    engine.begun_with()
    engine.start()
    engine.load(IMAGE, layers)
    engine.lowest = layers[0]
    yield engine
    engine.stop()


@pytest.fixture
def engine(the_engine: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine, running at the begin of each test, without containers in the end."""
    column, _ = request.node.callspec.params["the_engine"]
    request.node.user_properties += [("row", row_of(request.node)), ("column", column)]
    the_engine.start()
    yield the_engine
    if the_engine.root().exists():
        the_engine.start()
        the_engine.remove_all()


Finding = Callable[[str], None]


@pytest.fixture
def finding(request: pytest.FixtureRequest) -> Finding:
    """Say what stands in the table instead of "yes"."""

    def found(text: str) -> None:
        request.node.user_properties.append(("finding", text))

    return found


def row_of(item: pytest.Function) -> str:
    """What heads a test's row: the first line of its docstring, and its parameter if it has one."""
    head = (item.function.__doc__ or item.name).strip().splitlines()[0].rstrip(".")
    others = (value for name, value in item.callspec.params.items() if name != "the_engine")
    return " ".join([head, *(str(getattr(value, "name", value)) for value in others)])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the daemons said last where a test fails."""
    report = yield
    engine = getattr(item, "funcargs", {}).get("the_engine")
    if report.failed and isinstance(engine, Engine):
        report.sections.append(("the daemons' last words", engine.logs()))
    return report
