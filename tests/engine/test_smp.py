"""The store on two real CPUs, with systemd-udevd, where processes truly run at the same time."""

import re
import subprocess
from pathlib import Path

from tests.support.examples import is_deep

CHECKOUT = Path(__file__).resolve().parent.parent.parent
_WITH_MANY = "fifty or side_by_side or one_name or one_base"
"""The tests that do most at the same time. QEMU without KVM is slow, so the others run with --all only."""


def test_many_at_once_on_two_cpus_with_udevd() -> None:
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel/test_concurrency.py"]
    tests += [] if is_deep() else ["-k", _WITH_MANY]
    vm = [str(CHECKOUT / "scripts/vm"), "--engine", "qemu", "--"]
    done = subprocess.run([*vm, *tests], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9][0-9]* passed(, [0-9]+ deselected)? in ", done.stdout, re.MULTILINE), (
        done.stdout
    )  # and none skipped


def test_the_verbs_beside_udevd() -> None:
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel/test_store.py"]
    vm = [str(CHECKOUT / "scripts/vm"), "--udev", "--"]
    done = subprocess.run([*vm, *tests], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
