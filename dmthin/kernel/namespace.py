"""Confining this process: namespaces of its own, an empty root, few capabilities, only the descriptors it needs.

namespaces(7), pivot_root(2), capabilities(7), prctl(2). Descriptors that are open keep working, directories with all
that is below them. Nothing else can be reached: there is no path to any file of the host.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
from collections.abc import Collection
from typing import NoReturn

from dmthin.errors import KernelError
from dmthin.os_errors import NAMESPACES, SANDBOX, Context, explain
from dmthin.units import GIB

MEMORY = GIB
"""Bytes of address space that a process has once it is confined."""

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000)  # fmt: skip
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 0x1, 0x2, 0x4, 0x8, 0x20, 0x1000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_INERT = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_CAPABILITIES = (
    0,  # CHOWN
    1,  # DAC_OVERRIDE
    2,  # DAC_READ_SEARCH
    3,  # FOWNER
    4,  # FSETID: set-group-id stays on files of other groups
    21,  # SYS_ADMIN: without it the kernel neither lists nor sets trusted.* attributes (xattr(7))
    27,  # MKNOD
    31,  # SETFCAP
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct of linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """struct __user_cap_data_struct: 32 capabilities; there are two of them."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; a change of user or group undoes that.

    Raise KernelError.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "be killed with the parent")


def confine(keep: Collection[int]) -> None:
    """Give up all access to the host but the descriptors in `keep` and 0, 1, 2. Needs root and a single thread.

    This returns in a child, since a process cannot enter a pid namespace itself. The parent waits for the child, exits
    with its status (128 + n after signal n), and never returns from here. Each is killed when its own parent ends. The
    child is the first process of its namespace: signals that it sends to itself do nothing.

    All modules must have been imported: no file is left but a /proc of this process. Raise NotPermitted, Unavailable
    (the kernel has not all the namespaces), KernelError; the process can then only report that and end.
    """
    _close_all_but(keep)
    die_with_parent()
    _check(_libc.unshare(_NAMESPACES), "make namespaces", NAMESPACES)
    # Slave, not private: what is unmounted on the host must be unmounted in here too.
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)
    alive, ours = os.pipe()
    child = os.fork()
    if child:
        _exit_with(child)
    os.close(ours)
    die_with_parent()
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):
        os.read(alive, 1)  # end of file: the parent has died before the kernel knew that we are to be killed with it
        os._exit(1)
    os.close(alive)
    _empty_root()
    _drop_capabilities()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _close_all_but(keep: Collection[int]) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                os.close(fd)


def _exit_with(child: int) -> NoReturn:
    """Wait for the child, and exit with its status."""
    try:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    finally:
        os._exit(1)


def _empty_root() -> None:
    """Make an empty file system the root, and the old root unreachable.

    It is mounted over /proc, a folder that is there on every host, also on a read-only root; only this namespace has
    the mount. The new /proc shows this process alone. It is for system calls that take a path and no descriptor.
    """
    _mount("tmpfs", "/proc", "tmpfs", _INERT, "size=4k,nr_inodes=4,mode=755")
    os.chdir("/proc")
    os.mkdir("proc", 0o555)  # noqa: PTH102
    try:
        _mount("proc", "proc", "proc", _INERT | _MS_RDONLY, "subset=pid")
    except KernelError:  # Linux before 5.8
        _mount("proc", "proc", "proc", _INERT | _MS_RDONLY)
    # The old root is then mounted on top of the new one, and is unmounted there: pivot_root(2), `pivot_root(".", ".")`.
    _check(_libc.pivot_root(b".", b"."), "change the root")
    _check(_libc.umount2(b".", _MNT_DETACH), "leave the old root")
    os.chdir("/")
    _mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _INERT)


def _drop_capabilities() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")
    for number in range(64):
        if number not in _CAPABILITIES and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            if ctypes.get_errno() == errno.EINVAL:  # the kernel has no capability of this number, nor higher ones
                break
            _check(-1, "drop capabilities")
    kept = sum(1 << number for number in _CAPABILITIES)
    sets = (_Sets * 2)(_Sets(kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0), _Sets(kept >> 32, kept >> 32, 0))
    _check(_libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets), "drop capabilities")


def _mount(source: str, target: str, fs_type: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), fs_type.encode(), flags, data.encode())
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def _check(result: int, doing: str, context: Context = SANDBOX) -> None:
    if result:
        raise explain(ctypes.get_errno(), f"a worker cannot {doing}", context)
