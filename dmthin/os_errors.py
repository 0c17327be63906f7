"""The error for the errno of a system call: one table for all callers, errno(3).

What a number means depends on the call: EINVAL of umount2(2) says that nothing is mounted there. So each kind of call
has a `Context` of its own, and a number that its context does not list is a KernelError with the system's own text.
"""

import errno
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    KernelInvalid,
    NeedsRepair,
    NoDataSpace,
    NotFound,
    NotPermitted,
    TimeLimit,
    Unavailable,
)

RUN_AS_ROOT = "run this as root"
NO_THIN_POOL = "load it with: modprobe dm-thin-pool"
_ROOT_IS_REFUSED = "root lacks this right here: a container without it, an immutable file, or a security module"
_OLD_KERNEL = "dmthin needs Linux 5.6 or later"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a number means in one context: the class of the error, and its hint.

    `reason` stands in place of the system's text, `message` in place of the whole message.
    """

    error: type[DmthinError] = KernelError
    reason: str = ""
    hint: str = ""
    message: str = ""


Context = Mapping[int, Meaning]


def explain(number: int, failed: str, context: Context, *, reason: str = "") -> DmthinError:
    """Return the error for an errno. Its message is `failed`, such as `cannot open X`, and the reason.

    `reason` is what the kernel or a program has said in its own words, if it has. A `number` of 0 stands for an errno
    that a program has not passed on.
    """
    meaning = context.get(number) or _ANYWHERE.get(number, _UNKNOWN)
    why = meaning.reason or reason or (os.strerror(number) if number else "the kernel gave no reason")
    if number == errno.EMFILE:
        why = f"{why} ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
    message = meaning.message or (f"{failed}: {why}" if failed else why)
    hint = _ROOT_IS_REFUSED if meaning.hint == RUN_AS_ROOT and not os.geteuid() else meaning.hint
    if issubclass(meaning.error, KernelError):
        return meaning.error(message, errno=number, hint=hint)
    return meaning.error(message, hint=hint)


def os_failure(error: OSError, doing: str, context: "Context | None" = None) -> DmthinError:
    """Return the error for an OSError met while `doing` something, such as `open X`; `context` is FILES by default."""
    return explain(error.errno or 0, f"cannot {doing}", FILES if context is None else context)


_UNKNOWN = Meaning()

_ANYWHERE: Context = {
    errno.EMFILE: Meaning(
        reason="the process has as many open files as its limit allows",
        hint="raise it with ulimit -n, or LimitNOFILE= of a service",
    ),
    errno.ENFILE: Meaning(reason="the host has as many open files as it allows", hint="raise it: sysctl fs.file-max"),
    errno.EROFS: Meaning(
        NotPermitted, "its file system is mounted read-only", "mount it writable, or choose another place"
    ),
    errno.ENAMETOOLONG: Meaning(InvalidValue, hint="choose a shorter path"),
    errno.ELOOP: Meaning(InvalidValue, hint="the path leads through links that lead to themselves"),
}
"""What a number means in every context that does not list it."""

_RIGHTS = (errno.EPERM, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)

RIGHTS: Context = dict.fromkeys(_RIGHTS, Meaning(NotPermitted, hint=RUN_AS_ROOT))
"""For calls in which nothing but a missing right has an error of its own. Most of the other contexts add to it."""

COMMAND: Context = {
    **RIGHTS,
    **dict.fromkeys(_FULL, Meaning(NoDataSpace, hint="free some space there")),
    errno.ENOENT: Meaning(NotFound),
}
"""For what the command line itself reads and writes."""

FILES: Context = {
    **RIGHTS,
    **dict.fromkeys(_FULL, Meaning(NoDataSpace, hint="free some space, or choose another place with --root")),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), Meaning(NotFound)),
    errno.EFBIG: Meaning(NoDataSpace, "its file system has no files that large", "give a smaller size"),
}
"""For the files of a store, and for block devices."""

DEVICE_MAPPER: Context = {
    **dict.fromkeys(
        _RIGHTS, Meaning(NotPermitted, hint=RUN_AS_ROOT, message="device-mapper needs root (CAP_SYS_ADMIN)")
    ),
    **dict.fromkeys((errno.ENXIO, errno.ENODATA), Meaning(NotFound, "there is no such device")),
    **dict.fromkeys((errno.ENODEV, errno.ENOENT), Meaning(Unavailable, "a device below it is not there")),
    errno.EBUSY: Meaning(InUse, "the device is in use"),
    errno.EEXIST: Meaning(AlreadyExists),
    errno.ENOSPC: Meaning(NoDataSpace),
    errno.EOPNOTSUPP: Meaning(NeedsRepair, "the pool cannot be changed", "see: dmthin pool status"),
    errno.EINTR: Meaning(TimeLimit, "interrupted while it waited"),
    errno.EINVAL: Meaning(KernelInvalid, hint="the kernel log says why: dmesg"),
}
"""For requests to device-mapper, drivers/md/dm-ioctl.c and dm-thin.c.

ENXIO: no device has the name. ENODATA: the pool has no such thin id. ENODEV, ENOENT: a table names a device that is not
there. EBUSY: the device is open. EOPNOTSUPP: a message to a pool that is read-only or has failed.
"""

DEVICE_MAPPER_NAME: Context = {
    **DEVICE_MAPPER,
    errno.EBUSY: Meaning(AlreadyExists, "a device of that name or uuid exists", "see: dmsetup info"),
}
"""For requests that name a device: EBUSY says that the name or the uuid is taken."""

DEVICE_MAPPER_NODE: Context = {
    **DEVICE_MAPPER,
    **dict.fromkeys(
        (errno.ENODEV, errno.ENOENT),
        Meaning(Unavailable, hint=NO_THIN_POOL, message="this kernel has no device-mapper"),
    ),
}
"""For opening the control node."""

LOOP: Context = {
    **RIGHTS,
    **dict.fromkeys((errno.ENXIO, errno.ENODEV), Meaning(NotFound, "there is no such loop device")),
}
"""For requests to a loop device, drivers/block/loop.c."""

LOOP_NODE: Context = {**LOOP, errno.ENOENT: Meaning(NotFound)}
"""For opening the node of a loop device."""

LOOP_CONTROL: Context = {
    **RIGHTS,
    errno.ENODEV: Meaning(Unavailable, hint="load them with: modprobe loop", message="this kernel has no loop devices"),
    errno.ENOENT: Meaning(
        Unavailable, hint="run modprobe loop, or mount devtmpfs on /dev", message="/dev/loop-control is missing"
    ),
}
"""For opening /dev/loop-control. Where systemd has made the node and the module cannot be loaded, that is ENODEV."""

MOUNT: Context = {
    **RIGHTS,
    errno.EBUSY: Meaning(InUse, "busy"),
    errno.ENOENT: Meaning(NotFound),
    errno.ENODEV: Meaning(Unavailable, "this kernel does not have that file system", "load it with modprobe"),
    errno.EINVAL: Meaning(
        InvalidValue, "a bad option or superblock", "check dm.mountopt; the kernel log says more: dmesg"
    ),
}
"""For mount(2)."""

PROC: Context = {
    **RIGHTS,
    errno.ENOENT: Meaning(Unavailable, message="/proc is not mounted", hint="run: mount -t proc proc /proc"),
}
"""For the files of /proc that every process has."""

UNMOUNT: Context = {**MOUNT, errno.EINVAL: Meaning(NotFound, "nothing is mounted there")}
"""For umount2(2)."""

DETACHED_MOUNT: Context = {**RIGHTS, errno.ENOSYS: Meaning(Unavailable, "this kernel has no fsopen", _OLD_KERNEL)}
"""For fsopen(2) and the calls that follow it."""

SANDBOX: Context = dict.fromkeys(
    _RIGHTS, Meaning(NotPermitted, hint="run dmthin as root, and not in a container without CAP_SYS_ADMIN")
)
"""For the calls by which a worker gives up its access to the host."""

NAMESPACES: Context = {
    **SANDBOX,
    errno.EINVAL: Meaning(Unavailable, hint="the kernel needs mount, pid, net, ipc and uts namespaces"),
}
"""For unshare(2)."""

TREE_READ: Context = {
    **RIGHTS,
    **dict.fromkeys(
        (errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.ENXIO),
        Meaning(InvalidValue, hint="stop writing to the tree"),
    ),
}
"""For reading a tree that should not change meanwhile."""

TREE_WRITE: Context = {
    **RIGHTS,
    **dict.fromkeys(
        (
            errno.EEXIST,
            errno.EFBIG,
            errno.EILSEQ,
            errno.EINVAL,
            errno.EISDIR,
            errno.ELOOP,
            errno.EMLINK,
            errno.ENAMETOOLONG,
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EXDEV,
        ),
        Meaning(InvalidValue),
    ),
    errno.ENOSYS: Meaning(Unavailable, hint=_OLD_KERNEL, message="this kernel has no openat2"),
}
"""For unpacking an archive in a tree to which nothing else writes: an impossible entry is the archive's fault."""

SOURCE: Context = {
    **RIGHTS,
    **dict.fromkeys((errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG), Meaning(InvalidValue)),
}
"""For opening what an image is made of."""
