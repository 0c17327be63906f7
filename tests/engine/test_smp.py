"""The store on two real CPUs, with systemd-udevd, where processes truly run at the same time."""

import re
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def test_many_at_once_on_two_cpus_with_udevd() -> None:
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel/test_concurrency.py"]
    vm = [str(CHECKOUT / "scripts/vm"), "--engine", "qemu", "--"]
    done = subprocess.run([*vm, *tests], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9][0-9]* passed in ", done.stdout, re.MULTILINE), done.stdout  # and none skipped


def test_the_verbs_beside_udevd() -> None:
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel/test_store.py"]
    vm = [str(CHECKOUT / "scripts/vm"), "--udev", "--"]
    done = subprocess.run([*vm, *tests], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
