"""What `scripts/vm` makes of its words, and its host's side against stand-ins for a guest."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginelib.waiting import PATIENCE

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import vmlib.command_line as command_line  # noqa: E402
import vmlib.guest as guest  # noqa: E402
import vmlib.host as host  # noqa: E402
import vmlib.initramfs as initramfs  # noqa: E402
import vmlib.request as request  # noqa: E402


def wanted(cwd: Path, *command: str, time_limit: float | None = None, udev: bool = False) -> request.Request:
    """A request for a command, with everything else as it comes."""
    environment = {"DMTHIN_WORD": 'it\'s "two" words $HOME'}
    return request.Request(command, environment, cwd, cwd / "venv", 1 << 30, time_limit=time_limit, udev=udev)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["true"], ["true"]),
        (["--", "true"], ["true"]),
        (["sh", "-c", "echo --engine"], ["sh", "-c", "echo --engine"]),
        (["--memory", "1G", "ls", "--", "-l"], ["ls", "--", "-l"]),
        (["--udev", "--", "--odd"], ["--odd"]),
    ],
)
def test_options_end_where_the_command_begins(words: list[str], command: list[str]) -> None:
    assert command_line.parse(words).command == command


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no COMMAND"),
        (["--"], "no COMMAND"),
        (["--engine", "vbox", "true"], "vbox"),
        (["--memory", "4", "true"], "no size"),
        (["--memory", "-1G", "true"], "memory"),
        (["--memory", "1M", "true"], "not between"),
        (["--memory", "2000G", "true"], "not between"),
        (["--timeout", "0", "true"], "no number of seconds"),
        (["--timeout", "nan", "true"], "no number of seconds"),
        (["--env", "1X=2", "true"], "no name"),
        (["--env", "=2", "true"], "no name"),
        (["--unknown", "true"], "--unknown"),
        (["--system", "etch", "true"], "etch"),
        (["--system", "trixie", "--engine", "qemu", "true"], "--system takes user-mode-linux"),
        (["--systemd", "--engine", "qemu", "true"], "--systemd takes user-mode-linux"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_is_wrong(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.parse(words)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(("text", "amount"), [("64M", 64 << 20), ("4G", 4 << 30), ("2GiB", 2 << 30)])
def test_sizes(text: str, amount: int) -> None:
    assert command_line.size(text) == amount


def test_chosen_variables_pass() -> None:
    here = {"DMTHIN_X": "1", "PYTEST_ADDOPTS": "-x", "CI": "true"}
    here |= {"SECRET": "s", "OTHER": "o", "DMTHIN_%%": "?"}
    assert request.passed_environment(here, ["OTHER", "NEW=a=b", "UNSET"]) == {
        "DMTHIN_X": "1",
        "PYTEST_ADDOPTS": "-x",
        "CI": "true",
        "OTHER": "o",
        "NEW": "a=b",
    }


def test_udevd_is_left_out_of_devicemappers_way_unless_it_runs(tmp_path: Path) -> None:
    assert request.guest_environment(wanted(tmp_path, "true"), "uml")["DM_DISABLE_UDEV"] == "1"
    assert "DM_DISABLE_UDEV" not in request.guest_environment(wanted(tmp_path, "true", udev=True), "uml")


def test_the_job_is_the_command_word_for_word(tmp_path: Path) -> None:
    cwd = tmp_path / "it's a $(folder)"
    cwd.mkdir()
    script = 'printf "%s|" "$DMTHIN_WORD" "$DMTHIN_VM" "$PWD" "$@"'
    asked = wanted(cwd, "sh", "-c", script, "sh", "a  b", "*", "'", "\\n")
    job = request.job_script(asked, "uml").replace(f"PATH={asked.venv}/bin:", f"PATH={os.environ['PATH']}:")
    said = subprocess.run(["sh"], input=job, capture_output=True, text=True, check=True).stdout
    assert said == f"it's \"two\" words $HOME|uml|{cwd}|a  b|*|'|\\n|"


def test_only_what_the_guest_hides_is_shown_again() -> None:
    needed = ["/srv/code", "/tmp/a/code", "/tmp/a/code/.venv", "/tmp", "/var/lib/b", "/var/tmp/c"]
    hidden = guest.hidden_paths(map(Path, needed))
    assert hidden == [Path("/tmp/a/code"), Path("/var/lib/b")]


def test_another_system_is_shown_the_checkout_and_a_folder_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "system/srv").mkdir(parents=True)
    for cwd, shown in ((Path("/srv"), False), (Path("/nowhere/here"), True)):
        asked = request.Request(("true",), {}, cwd, cwd, 1 << 30, system=tmp_path / "system")
        assert request.CHECKOUT in asked.needed_paths()
        assert (cwd in asked.needed_paths()) is shown
        environment = request.guest_environment(asked, "uml")
        assert (environment["DMTHIN_VM_SYSTEM"], environment["PATH"]) == ("system", request.SYSTEM_PATH)


def test_paths_are_written_as_fstab_wants_them() -> None:
    assert guest.escaped(Path("/a b\tc\\d")) == "/a\\040b\\011c\\134d"


def test_the_initramfs_is_an_archive_that_the_kernel_reads(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").write_bytes(b"box" * 33)
    modules = [tmp_path / name for name in ("second.ko", "first.ko")]
    for module in modules:
        module.write_bytes(module.name.encode())
    archive = initramfs.booting(tmp_path, modules, Path("/srv/init"), "root", "trans=virtio")
    entries = dict(read_archive(archive))
    assert entries["bin/busybox"] == b"box" * 33
    assert [name for name in entries if name.startswith("modules/")] == [
        "modules/000-second.ko",
        "modules/001-first.ko",
    ]
    assert b"switch_root /root /srv/init" in entries["init"]


def read_archive(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of an archive in cpio's "newc" form."""
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        head = archive[position + 6 : position + 110]
        length, name_length = int(head[48:56], 16), int(head[88:96], 16)
        name = archive[position + 110 : position + 110 + name_length - 1].decode()
        if name == "TRAILER!!!":
            return
        start = (position + 110 + name_length + 3) & ~3
        yield name, archive[start : start + length]
        position = (start + length + 3) & ~3


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., int]:
    """Run shell text in a guest's place; $1 is the channel's folder."""
    channel = host.Channel.create(tmp_path / "channel", "")

    def run(script: str, time_limit: float | None = None) -> int:
        line = ["sh", "-c", script, "sh", str(channel.folder)]
        return host.run_guest(line, os.environ, channel, wanted(tmp_path, "true", time_limit=time_limit))

    return run


def test_output_and_status_come_home(stand_in: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert stand_in('printf "out\\r\\n" >> $1/stdout; printf err >> $1/stderr; echo 42 > $1/status') == 42
    assert capfd.readouterr() == ("out\r\n", "err")


def test_output_comes_while_the_command_runs(stand_in: Callable[..., int]) -> None:
    reading, writing = os.pipe()
    kept = os.dup(1)
    os.dup2(writing, 1)
    try:
        # The stand-in goes on only when what it said has arrived: nothing but live output ends this.
        script = f"echo said >> $1/stdout; read answer < /proc/{os.getpid()}/fd/{reading}; echo 0 > $1/status"
        assert stand_in(script, time_limit=20) == 0
    finally:
        os.dup2(kept, 1)
        for descriptor in (reading, writing, kept):
            os.close(descriptor)


@pytest.mark.parametrize("script", ["exit 0", "echo 0 > $1/status; kill -ABRT $$"])
def test_a_dead_guest_is_no_answer(stand_in: Callable[..., int], script: str) -> None:
    with pytest.raises(request.VmError, match=r"died .*\n    booting\n    Kernel panic - not"):
        stand_in(f"echo booting; echo 'Kernel panic - not syncing: test'; {script}")


def test_the_time_limit_ends_a_guest_and_its_companions(stand_in: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(host.TimeLimit, match=r"within 0\.5 s"):
        stand_in("sleep 1000 & echo $! > $1/companion; wait", time_limit=0.5)
    companion = int((tmp_path / "channel" / "companion").read_text())
    assert not alive(companion)


def alive(process: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_last_words_are_the_last_lines_without_a_panic(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\r\n" for number in range(100)))
    assert host.last_words(log).splitlines()[-1] == "    line 99"
    assert len(host.last_words(log).splitlines()) == 15


@pytest.mark.parametrize(
    ("command", "status"), [(("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 137)]
)
def test_native_keeps_the_status(tmp_path: Path, command: tuple[str, ...], status: int) -> None:
    assert host.run_here(wanted(tmp_path, *command), os.environ) == status


def test_native_tells_a_missing_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.run_here(wanted(tmp_path, "no-such-program"), os.environ) == 127
    assert "no-such-program" in capsys.readouterr().err


def test_a_signal_reaches_a_native_command_before_it_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from vmlib import host, request
host.ending_signals.obey()
assert host._GOODBYE
host._GOODBYE = 1e6
command = ("sh", "-c", "trap 'echo tidied; exit' TERM; echo ready; while :; do sleep 0.05; done")
try:
    host.run_here(request.Request(command, {{}}, Path("/"), Path("/"), 0), os.environ)
except host.Interrupted as interrupted:
    print("interrupted by", interrupted.number)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE)[0] == f"tidied\ninterrupted by {signal.SIGTERM.value}\n"


@pytest.mark.parametrize("words", [["--vm"], ["--vm", "vbox"], ["--system", "etch"], ["--unknown"]])
def test_setup_refuses_what_it_does_not_know(words: list[str]) -> None:
    done = subprocess.run([SCRIPTS / "setup", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: scripts/setup" in done.stderr
