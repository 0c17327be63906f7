"""The Python that the documents show runs, and prints what they say."""

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest

from dmthin import create_store

CHECKOUT = Path(__file__).parent.parent.parent
ROOT = "/var/lib/dmthin"
"""The store of the examples; the tests put one of their own in its place."""

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def run(page: Path, root: Path) -> int:
    """Run the Python blocks of a page one after the other, in one namespace; how many there were.

    What a block prints must be the `text` block that follows it directly, if there is one. A traceback names the page's
    line.
    """
    text = page.read_text()
    names: dict[str, object] = {}
    blocks = list(_BLOCK.finditer(text))
    for block in blocks:
        line = text.count("\n", 0, block.start("code"))
        code = block["code"].replace(ROOT, str(root))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * line + code, str(page), "exec"), names)
        if block["output"] is not None:
            assert printed.getvalue() == block["output"], f"{page}, line {line + 1}"
    return len(blocks)


@pytest.fixture
def rootfs(tree: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rootfs.tar in the current folder."""
    monkeypatch.chdir(scratch)
    subprocess.run(["tar", "-cf", "rootfs.tar", "-C", tree, "."], check=True)
    return scratch / "rootfs.tar"


@pytest.mark.usefixtures("rootfs")
def test_the_page_of_the_python_api(scratch: Path) -> None:
    assert run(CHECKOUT / "docs/python.md", scratch / "store") >= 8
    assert not (scratch / "store").exists()


def test_the_python_of_the_readme(rootfs: Path, scratch: Path) -> None:
    with create_store(scratch / "store") as store:
        store.images.import_("debian", rootfs)
        assert run(CHECKOUT / "README.md", scratch / "store") >= 1
        assert [entry.name for entry in store.layout.mounts.iterdir()] == ["web"]
        store.containers.unmount("web")
        store.pool.destroy()
