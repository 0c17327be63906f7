"""The floors hold: imports go downward, one door to programs, one to the kernel, and each module is short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmthin

ROOT = Path(dmthin.__file__).parent
FLOORS = {"kernel": 1, "pool": 2, "layers": 2, "store": 3, "docker": 4, "containerd": 4, "daemon": 5, "cli": 6}
STORE_FLOORS = {"state": 3.0, "config": 3.1, "lifecycle": 3.2, "volumes": 3.3}
"""The rooms of the store, below the modules that front ends hold."""
MODULES = sorted(ROOT.rglob("*.py"))
PAGE = ROOT.parent / "docs/architecture.md"
DOORS = {
    "sh": {"kernel/process.py"},
    "subprocess": set[str](),
    "aiohttp": {"docker/server.py", "docker/streams.py", "daemon/serve.py"},
    "grpclib": {"containerd/content.py", "containerd/server.py", "daemon/serve.py"},
    "tomlkit": {"containerd/toml_edit.py"},
    "google": {"containerd/descriptors.py"},
    "pyudev": {"kernel/udev.py"},
    "psutil": {"kernel/holders.py"},
    "sqlite3": {"store/state/database.py", "store/state/schema.py"},
}


def floor(module: str) -> float:
    """The floor of `dmthin.kernel.loop` and the like; what lies directly in dmthin is the ground."""
    words = module.split(".")
    if words[1:2] == ["store"]:
        return STORE_FLOORS.get(words[2] if len(words) > 2 else "", 3.9)
    return FLOORS[words[1]] if len(words) > 1 and words[1] in FLOORS else 0


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    name = ".".join(("dmthin", *path.relative_to(ROOT).with_suffix("").parts))
    if name in ("dmthin.__init__", "dmthin.__main__"):  # which only point at what is below and above
        return
    for imported in imports(path):
        if imported.startswith("dmthin."):
            assert floor(imported) <= floor(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_one_door_to_each_outside_thing(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for imported in imports(path):
        top = imported.split(".")[0]
        if top in DOORS:
            assert place in DOORS[top], f"{place} imports {top}"
        if top in ("fcntl", "ctypes"):
            assert place.startswith(("kernel/", "store/state/locks.py")), f"{place} imports {top}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_page_on_the_architecture_names_each_module(path: Path) -> None:
    if path.stem != "__init__":
        assert f"| `{path.relative_to(ROOT)}` |" in PAGE.read_text()
