"""The errno of a device-mapper request, as an error of dmthin. Both implementations translate here."""

import errno
import os

from dmthin.errors import (
    AlreadyExists,
    DmthinError,
    InUse,
    InvalidValue,
    KernelError,
    NeedsRepair,
    NoDataSpace,
    NotFound,
    NotPermitted,
    TimeLimit,
    Unavailable,
)

NO_DEVICE_MAPPER = "load it with: modprobe dm-thin-pool"


def translate(number: int, doing: str, device: str, detail: str = "") -> DmthinError:
    """The error for `number` met while `doing` something to `device`; `detail` is the program's own words.

    The kernel gives EBUSY both for a name that is taken (create) and for a device that is open (remove), ENXIO for
    a device that is not there, ENODATA for a thin id that is not in the pool, EOPNOTSUPP for a message to a pool that
    is read-only or failed, ENODEV or ENOENT on the control node where device-mapper is absent (`doing` is "open"), and
    the same for a table that names a device which is not there.
    """
    what = f"{doing} {device}".strip()
    reason = detail or (os.strerror(number) if number else "the kernel gave no reason")
    message = f"device-mapper: {what}: {reason}"
    making = doing in ("create", "rename")
    match number:
        case errno.EBUSY if making:
            return AlreadyExists(f"the device {device} exists already", hint="see: dmsetup info")
        case errno.EBUSY:
            return InUse(f"device-mapper: {what}: the device is in use")
        case errno.EEXIST:
            return AlreadyExists(message)
        case errno.ENXIO | errno.ENODATA:
            return NotFound(f"device-mapper: {what}: there is no such device")
        case errno.ENOSPC:
            return NoDataSpace(message)
        case errno.EOPNOTSUPP:
            return NeedsRepair(f"device-mapper: {what}: the pool cannot be changed", hint="see: dmthin pool status")
        case errno.EPERM | errno.EACCES:
            return NotPermitted("device-mapper needs root (CAP_SYS_ADMIN)", hint="run this as root")
        case errno.ENODEV | errno.ENOENT if doing == "open":
            return Unavailable("this kernel has no device-mapper", hint=NO_DEVICE_MAPPER)
        case errno.ENODEV | errno.ENOENT:
            return Unavailable(f"device-mapper: {what}: a device below it is not there")
        case errno.EINTR:
            return TimeLimit(f"device-mapper: {what}: interrupted while it waited")
        case errno.EINVAL:
            return KernelInvalid(message, errno=number, hint="the kernel log says why: dmesg")
    return KernelError(message, errno=number)


class KernelInvalid(KernelError, InvalidValue):
    """EINVAL: a table, name or message that the kernel refuses."""
