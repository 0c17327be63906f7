"""`scripts/vm` with real guests: the promises that every other test on a kernel rests on."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginelib.waiting import PATIENCE, until

CHECKOUT = Path(__file__).resolve().parents[2]
Vm = Callable[..., "subprocess.CompletedProcess[str]"]


def vm_line(*words: str) -> list[str]:
    """The command line of `scripts/vm`."""
    return [str(CHECKOUT / "scripts" / "vm"), *words]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for what a test's guests need; in the end nothing is left there, nor any process of theirs."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    assert processes_naming(folder) == []


def processes_naming(folder: Path) -> list[str]:
    """The command lines of live processes that name a folder: kernels name theirs."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.fixture
def vm(home: Path, tmp_path: Path) -> Vm:
    """Run `scripts/vm` to its end, from a folder that the guest's own /tmp would hide."""

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            vm_line(*words),
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )
        stdout, stderr = done.stdout.decode(), done.stderr.decode()  # text=True would translate "\r"
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    return run


def started(home: Path, *words: str) -> "subprocess.Popen[str]":
    """`scripts/vm` as it runs; its output is a pipe."""
    environment = {**os.environ, "TMPDIR": str(home)}
    return subprocess.Popen(
        vm_line(*words), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )


def said(process: "subprocess.Popen[str]") -> str:
    """The next line that a running guest's command says."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("command", "status"),
    [("true", 0), ("exit 42", 42), ("kill -KILL $$", 128 + signal.SIGKILL), ("no-such-program", 127)],
)
def test_the_exit_status_is_the_commands(vm: Vm, command: str, status: int) -> None:
    assert vm("sh", "-c", command).returncode == status


def test_stdout_and_stderr_come_apart_and_unchanged(vm: Vm) -> None:
    script = r"printf 'one\ttwo  \r\nend'; printf 'err\n' >&2; sleep 100 & cat"
    done = vm("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ttwo  \r\nend", "err\n")


def test_one_sink_for_both_keeps_their_order(home: Path) -> None:
    script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
    done = subprocess.run(
        vm_line("sh", "-c", script),
        env={**os.environ, "TMPDIR": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["out1", "err1", "out2", "err2", "out3", "err3"]


def test_output_comes_while_the_command_runs(home: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    wait_for_us = "echo begun; until [ -e $DMTHIN_VM_OUT/go ]; do sleep 0.1; done; echo ended"
    process = started(home, "--out", str(results), "sh", "-c", wait_for_us)
    assert said(process) == "begun\n"
    (results / "go").touch()
    assert said(process) == "ended\n"
    assert process.wait(PATIENCE) == 0


def test_the_command_finds_its_folder_its_code_and_a_kernel_with_dm_thin(vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("the caller's\n")
    script = """
        cat here; pwd; command -v dmthin; command -v python; python -c 'import dmthin; print(dmthin.__file__)'
        id -u; echo "$DMTHIN_VM $DMTHIN_WORD"; dmsetup targets | grep -c '^thin'
        echo more 2>/dev/null >> here
    """
    done = vm("--env", "DMTHIN_WORD=two words", "sh", "-c", script)
    venv = Path(os.environ.get("DMTHIN_VENV") or CHECKOUT / ".venv")
    assert done.stdout.splitlines() == [
        *("the caller's", str(tmp_path), f"{venv}/bin/dmthin", f"{venv}/bin/python"),
        *(f"{CHECKOUT}/dmthin/__init__.py", "0", "uml two words", "2"),
    ]
    assert (tmp_path / "here").read_text() == "the caller's\n"


def test_the_scratch_disk_takes_direct_io_and_gives_space_back(vm: Vm) -> None:
    script = """
        set -e
        cd "$DMTHIN_VM_SCRATCH"
        truncate -s 1G file
        loop=$(losetup --direct-io=on --show -f file)
        losetup --noheadings --output DIO $loop
        dd if=/dev/zero of=$loop bs=1M count=8 oflag=direct status=none
        stat -c %b file
        blkdiscard $loop
        stat -c %b file
        losetup -d $loop
        touch /etc/new /var/new /tmp/new /run/new /mnt/new /var/lib/dmthin
    """
    done = vm("sh", "-c", script)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1", "16384", "0"], "")


def test_udevd_makes_the_nodes_where_it_is_asked_for(vm: Vm) -> None:
    done = vm("--udev", "sh", "-c", "dmsetup create links --table '0 8 zero' && readlink /dev/mapper/links")
    assert (done.returncode, done.stdout) == (0, "../dm-0\n")


def test_guests_run_side_by_side(home: Path, tmp_path: Path) -> None:
    """Each waits for a file that comes once both have begun."""
    results = [tmp_path / number for number in ("1", "2")]
    wait_for_us = "until [ -e $DMTHIN_VM_OUT/go ]; do sleep 0.1; done"
    guests = [
        started(home, "--out", str(folder), "sh", "-c", f"echo {folder.name}; {wait_for_us}") for folder in results
    ]
    assert [said(guest) for guest in guests] == ["1\n", "2\n"]
    for folder in results:
        (folder / "go").touch()
    assert [guest.wait(PATIENCE) for guest in guests] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_guest_and_leaves_nothing(home: Path, number: signal.Signals) -> None:
    process = started(home, "sh", "-c", "trap '' INT TERM HUP; echo up; while :; do sleep 1; done")
    assert said(process) == "up\n"
    os.kill(process.pid, number)
    assert process.wait(PATIENCE) == 128 + number


def is_laid_out(home: Path) -> bool:
    """Whether the folder is there that a guest boots from."""
    return any(home.iterdir())


def has_a_kernel(home: Path) -> bool:
    """Whether the guest's kernel runs, as a process."""
    return processes_naming(home) != []


def boots(home: Path) -> bool:
    """Whether the guest's kernel has said something."""
    return any(log.stat().st_size for log in home.glob("*/kernel.log"))


@pytest.mark.parametrize("moment", [Path.exists, is_laid_out, has_a_kernel, boots])
def test_a_signal_while_the_guest_comes_up_leaves_nothing(home: Path, moment: Callable[[Path], bool]) -> None:
    process = started(home, "sleep", "100")
    until(lambda: moment(home))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) in (128 + signal.SIGINT, -signal.SIGINT, 1)


def test_the_time_limit_ends_the_guest(vm: Vm) -> None:
    done = vm("--timeout", "4", "sleep", "100")
    assert done.returncode == 124
    assert "within 4 s" in done.stderr


def test_a_panic_is_told_with_the_kernels_words(vm: Vm) -> None:
    done = vm("sh", "-c", "echo before; echo c > /proc/sysrq-trigger; sleep 60")
    assert (done.returncode, done.stdout) == (125, "before\n")
    assert "Kernel panic - not syncing" in done.stderr


def test_a_kept_disk_survives_the_loss_of_power(home: Path, tmp_path: Path, vm: Vm) -> None:
    disk = tmp_path / "a disk, kept.img"
    script = "cd $DMTHIN_VM_SCRATCH; echo synced > file; sync; echo ready; sleep 100"
    process = started(home, "--disk", str(disk), "sh", "-c", script)
    assert said(process) == "ready\n"
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert vm("--disk", str(disk), "cat", "/var/lib/scratch/file").stdout == "synced\n"
    assert disk.stat().st_blocks * 512 < 1 << 30


def test_the_native_engine_uses_the_kernel_at_hand(vm: Vm) -> None:
    script = 'echo "$DMTHIN_VM"; cd "$DMTHIN_VM_SCRATCH" && touch file; exit 42'
    done = vm(*vm_line("--engine", "native", "sh", "-c", script))
    assert (done.returncode, done.stdout, done.stderr) == (42, "native\n", "")


def test_qemu_keeps_the_same_promises(vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("the caller's\n")
    script = r"""
        cat here; nproc; [ -S /run/udev/control ] && echo udevd; echo "$DMTHIN_VM"; command -v dmthin
        dmsetup create links --table '0 8 zero' && readlink /dev/mapper/links
        dmsetup targets | grep -o '^thin-pool'
        cd "$DMTHIN_VM_SCRATCH" && truncate -s 1G file && losetup --direct-io=on --show -f file
        printf 'end\r' >&2; echo result > "$DMTHIN_VM_OUT/result"
        exit 42
    """
    done = vm("--engine", "qemu", "--out", str(tmp_path / "results"), "sh", "-c", script)
    venv = Path(os.environ.get("DMTHIN_VENV") or CHECKOUT / ".venv")
    assert done.returncode == 42
    assert done.stdout.splitlines() == [
        *("the caller's", "2", "udevd", "qemu", f"{venv}/bin/dmthin"),
        *("../dm-0", "thin-pool", "/dev/loop0"),
    ]
    assert done.stderr == "end\r"
    assert (tmp_path / "results" / "result").read_text() == "result\n"


def test_a_signal_ends_qemu_too(home: Path) -> None:
    process = started(home, "--engine", "qemu", "sh", "-c", "echo up; sleep 100")
    assert said(process) == "up\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
