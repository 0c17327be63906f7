"""QEMU with Debian's kernel: two CPUs, systemd-udevd, what container engines need; ready in six seconds."""

import os
import subprocess
import tempfile
import zlib
from pathlib import Path

from vmlib import initramfs
from vmlib.guest import Layout, Machine, Share, escaped, laid_out
from vmlib.host import run_guest
from vmlib.request import Request, cache_folder

SETUP: tuple[str, ...] = ("--vm", "qemu")

_MODULES = (
    *("virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "overlay", "ext4", "loop"),
    *("dm-thin-pool", "dm-snapshot", "dm-flakey", "dm-delay", "dm-log-writes"),
)
_9P = "trans=virtio,version=9p2000.L,msize=512000,access=any"
_READ_ONLY_9P = f"{_9P},cache=loose"  # we alone look at it, so what was read once may be kept
_ROOT_TAG = "root"
_TRIAL = 20.0
_XZ = b"\xfd7zXZ\0"

_TCG = ("-accel", "tcg,thread=multi", "-cpu", "max,la57=off")  # walks of five-level page tables are slow
_KVM = ("-accel", "kvm", "-cpu", "host")


def run(request: Request) -> int:
    """Boot, run the command, power off; the command's exit status."""
    unpacked = cache_folder() / "qemu"
    version = (unpacked / "version").read_text().strip()
    machine = Machine(
        engine="qemu",
        modules_folder=unpacked / "lib" / "modules",
        modules=(),  # the initramfs has loaded them
        disk="/dev/vda",
        mount_line=_mount_line,
        udev=request.udev,
        first_mounts=("devtmpfs /dev devtmpfs mode=755",),
    )
    with laid_out(request, machine) as layout:
        image = layout.work / "initramfs"
        modules = initramfs.module_files(unpacked, version, _MODULES)
        image.write_bytes(initramfs.booting(unpacked, modules, layout.init, _ROOT_TAG, _READ_ONLY_9P))
        line = [
            *_machine_line(unpacked, version, image, _accelerator(unpacked, version)),
            *("-smp", "2", "-m", f"{request.memory >> 20}M"),
            *("-serial", "stdio", "-drive", f"file={layout.disk},format=raw,if=virtio,discard=unmap"),
            *_share_devices(layout),
        ]
        return run_guest(line, os.environ, layout.channel, request)


def _machine_line(unpacked: Path, version: str, image: Path, accelerator: tuple[str, ...]) -> list[str]:
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", *accelerator, "-kernel", str(_kernel(unpacked, version)), "-initrd", str(image)),
        *("-append", "console=ttyS0 panic=-1 oops=panic mitigations=off"),
    ]


def _kernel(unpacked: Path, version: str) -> Path:
    """The kernel without its packing, which QEMU starts at once: the guest would unpack it for 3 s."""
    packed = unpacked / "boot" / f"vmlinuz-{version}"
    plain = unpacked / "boot" / f"vmlinux-{version}"
    if plain.exists():
        return plain
    try:
        import lzma
    except ImportError:  # Python can be built without it
        return packed
    data = packed.read_bytes()
    start = data.find(_XZ)
    if start < 0:
        return packed
    fresh = plain.with_name(f"{plain.name}.{os.getpid()}")
    fresh.write_bytes(lzma.LZMADecompressor().decompress(data[start:]))
    return fresh.rename(plain)


def _share_devices(layout: Layout) -> list[str]:
    shares = [Share(Path("/"), Path("/")), *layout.shares]
    devices: list[str] = []
    for number, share in enumerate(shares):
        source = str(share.source).replace(",", ",,")
        mode = "readonly=off" if share.writable else "readonly=on"
        backend = f"local,id=fs{number},path={source},security_model=none,multidevs=remap,{mode}"
        devices += ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev=fs{number},mount_tag={_tag(share)}"]
    return devices


def _tag(share: Share) -> str:
    """The name by which a guest mounts a share, at most 31 bytes."""
    return _ROOT_TAG if share.place == Path("/") else f"share-{zlib.crc32(os.fsencode(share.place)):08x}"


def _mount_line(share: Share) -> str:
    mode = f"rw,{_9P}" if share.writable else f"ro,{_READ_ONLY_9P}"
    return f"{_tag(share)} {escaped(share.place)} 9p X-mount.mkdir,{mode}"


def _accelerator(unpacked: Path, version: str) -> tuple[str, ...]:
    """KVM where it works. That /dev/kvm exists does not tell: only a boot does, tried once for each start."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _TCG
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = unpacked / f"kvm-{version}-{boot}"
    if not known.exists():
        answer = "works" if _boots(unpacked, version, _KVM) else "fails"
        for old in unpacked.glob("kvm-*"):
            old.unlink(missing_ok=True)
        known.write_text(answer)
    return _KVM if known.read_text() == "works" else _TCG


def _boots(unpacked: Path, version: str, accelerator: tuple[str, ...]) -> bool:
    """Whether a machine without disks comes up and powers itself off within the time of a trial."""
    with tempfile.NamedTemporaryFile(prefix="dmthin-vm-") as image:
        image.write(initramfs.stopping(unpacked))
        image.flush()
        line = _machine_line(unpacked, version, Path(image.name), accelerator)
        try:
            done = subprocess.run(
                [*line, "-m", "512M", "-serial", "stdio"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_TRIAL,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and b"Power down" in done.stdout
