"""From arguments to the exit status, where no kernel is needed: usage, errors, signals, streams that close."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import dmthin.store.report
from dmthin import __version__
from dmthin.cli import main
from dmthin.cli.output import Output
from dmthin.cli.program import _explain
from dmthin.cli.signals import ENDING, Interrupted, raised_in_main_thread
from dmthin.errors import OutputLost
from tests.support.processes import NOBODY, error_output

Run = Callable[..., tuple[int, str, str]]
HEAVY = ("sh", "psutil", "pyudev", "zstandard", "tarfile", "sqlite3", "dmthin.store.store")
COMMAND = [sys.executable, "-c", "from dmthin.cli import main; raise SystemExit(main())"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: its exit status, output and words."""

    def once(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return once


def test_help_and_version(run: Run) -> None:
    assert run("--version") == (0, f"dmthin {__version__}\n", "")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "examples:" in out
    assert "exit status:" in out
    assert run("help", "pool", "create")[1] == run("pool", "create", "--help")[1]


@pytest.mark.parametrize("words", [[], ["pool"], ["image"]])
def test_without_a_verb_the_help_is_an_error(run: Run, words: list[str]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("usage: dmthin")


def test_usage_errors(run: Run) -> None:
    status, out, err = run("pool", "stat")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "dmthin: unknown verb 'stat': did you mean status?"
    status, out, err = run("pool", "stat", "--json")
    assert (status, out) == (2, "")
    assert json.loads(err)["error"]["status"] == "invalid"


@pytest.mark.parametrize(
    "words",
    [["list"], ["tree"], ["du"], ["pool", "status"], ["pool", "destroy", "--yes"], ["container", "create", "a", "b"]],
)
def test_a_store_that_is_not_there(run: Run, tmp_path: Path, words: list[str]) -> None:
    root = tmp_path / "none"
    assert run("--root", str(root), *words) == (
        3, "", f"dmthin: {root} is not a store: make one with: dmthin pool create\n"
    )  # fmt: skip
    status, out, err = run("--root", str(root), "--json", *words)
    assert (status, out) == (3, "")
    assert json.loads(err)["error"]["exit_code"] == 3
    assert not root.exists()


def test_a_ledger_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database, whatever its name says" * 100)
    status, out, err = run("--root", str(tmp_path), "list")
    assert (status, out) == (3, "")
    assert err == f"dmthin: {tmp_path}/ledger.db is not a ledger of dmthin: choose another --root\n"


def test_bad_storage_options(run: Run, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path / "none"))
    for words in (["list"], ["pool", "create"], ["container", "resize", "web", "1G"]):
        status, _, err = run(*root, *words, "--storage-opt", "size=20G")
        assert (status, err.partition(" for ")[0]) == (2, "dmthin: the storage option size is valid")
    status, _, err = run(*root, "list", "--storage-opt", "dm.basesise=20G")
    assert (status, err) == (2, "dmthin: unknown storage option 'dm.basesise': did you mean dm.basesize?\n")
    status, _, err = run(*root, "image", "import", "a", "b", "--storage-opt", "size=huge")
    assert (status, err) == (
        2, "dmthin: size: 'huge' is not a size: write a number and a unit, such as 20G or 512M\n"
    )  # fmt: skip


def test_o_help_needs_no_store(run: Run) -> None:
    for words in (["list"], ["du"], ["image", "ls"], ["container", "ls"]):
        status, out, _ = run(*words, "-o", "help")
        assert status == 0
        assert "mapped (used)" in out


def test_without_rights_it_says_so() -> None:
    """A store of root's, seen by somebody else: a child that gives its rights up, the modules being loaded already."""
    assert dmthin.store.report
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Path(folder, "store")
        store.mkdir(mode=0o000 if os.geteuid() else 0o700)

        def list_as_nobody() -> None:
            if not os.geteuid():
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(main(["--root", str(store), "list"]))

        status, said = error_output(list_as_nobody)
    assert status == 8
    assert said.count("\n") == 1
    assert said.endswith(f" {store}/ledger.db: Permission denied: run this as root\n")


def test_a_bug_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain(TypeError("oh\nno"), Output()) == 1
    err = capsys.readouterr().err
    said = "this is a bug in dmthin: TypeError: oh\\nno: run it again with -v, and report its output"
    assert err == f"dmthin: {said}\n"
    try:
        raise TypeError("oh")
    except TypeError as error:
        assert _explain(error, Output(verbose=True)) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("dmthin: this is a bug in dmthin: TypeError: oh\n")


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EACCES, 8), (errno.ENOENT, 3), (errno.ENOSPC, 6), (errno.EIO, 1)]
)
def test_errors_of_the_system(capsys: pytest.CaptureFixture[str], number: int, status: int) -> None:
    assert _explain(OSError(number, os.strerror(number), "/some/file"), Output()) == status
    assert capsys.readouterr().err.startswith(f"dmthin: /some/file: {os.strerror(number)}")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_becomes_an_exception_once(number: signal.Signals) -> None:
    before = {ending: signal.getsignal(ending) for ending in ENDING}
    notes: list[str] = []
    with raised_in_main_thread(lambda: notes.append("again"), silent_afterwards=False):
        with pytest.raises(Interrupted) as interrupted:
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
    assert interrupted.value.number == number
    assert notes == ["again"]
    assert {ending: signal.getsignal(ending) for ending in ENDING} == before


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised_in_main_thread(lambda: None, silent_afterwards=False):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former)


def test_other_threads_run_commands_too(tmp_path: Path) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(["--root", str(tmp_path / "none"), "list"])))
    thread.start()
    thread.join()
    assert statuses == [3]


def test_interruption_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain(Interrupted(signal.SIGTERM), Output()) == 143
    assert capsys.readouterr().err.startswith("dmthin: terminated: the change was rolled back")
    assert _explain(Interrupted(signal.SIGINT), Output(as_json=True)) == 130
    assert json.loads(capsys.readouterr().err)["error"]["status"] == "interrupted"


def test_a_reader_that_leaves_is_no_failure_of_ours() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


PRINTS = (["list", "-o", "help"], ["--help"], ["--version"], ["help", "pool", "create"], ["pool", "trim", "--help"])
"""Commands that print something and need no store."""


def shell(script: str, *words: str) -> tuple[int, str, str]:
    """Run a line of sh in which the command is "$@": its exit status, output and words."""
    done = subprocess.run(["sh", "-c", script, "sh", *COMMAND, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_output_that_cannot_be_written_has_a_status_of_its_own(words: list[str], redirection: str, reason: str) -> None:
    assert shell(f'"$@" {redirection}', *words) == (13, "", f"dmthin: the output could not be written: {reason}\n")


def test_output_that_cannot_be_written_is_an_object_for_programs() -> None:
    status, _, err = shell('"$@" >/dev/full', "--json", "list", "-o", "help")
    error = json.loads(err)["error"]
    assert (status, error["status"], error["exit_code"]) == (13, "output_lost", 13)


def test_words_that_cannot_be_written_change_no_status() -> None:
    for redirection in ("2>/dev/full", "2>&-"):
        assert shell(f'"$@" {redirection}', "nonsense") == (2, "", "")
        status, out, _ = shell(f'"$@" {redirection}', "list", "-o", "help")
        assert (status, "mapped (used)" in out) == (0, True)


def test_neither_stream_can_be_written() -> None:
    for redirections in (">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"):
        assert shell(f'"$@" {redirections}', "--version") == (13, "", "")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    code = "import os; from dmthin.cli.streams import open_missing; open_missing(); print(os.open('/', 0), file={})"
    for redirection, file in (("<&-", "sys.stdout"), ("<&- 2>&-", "sys.stdout"), ("<&- >&-", "sys.stderr")):
        line = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-c", "import sys; " + code.format(file)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert (done.stdout + done.stderr).strip() == "3"


@pytest.mark.parametrize(
    ("error", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EPIPE, "its reader is gone")]
)
def test_a_change_whose_output_is_lost_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: int, reason: str
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(sys, "stdout", Full())
    for output in (Output(), Output(as_json=True)):
        with pytest.raises(
            OutputLost, match=f"^created web, but the output could not be written: {reason}: the change"
        ):
            output.changed("created web", {"created": "web"}, data="/dev/dm-1\n")
    assert capsys.readouterr().err == ""


def test_start_up_loads_nothing_heavy() -> None:
    code = "import sys; from dmthin.cli import main; main(['list', '-o', 'help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dmthin.cli.listing" in loaded
    assert not {module for module in HEAVY if module in loaded}
