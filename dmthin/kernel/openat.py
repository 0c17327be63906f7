"""Opening directories and files below a directory, and never outside of it: openat2(2), linux/openat2.h."""

import ctypes
import errno
import os

_OPENAT2 = 437  # the same on every architecture but alpha
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
"""RESOLVE_ flags of linux/openat2.h."""

_AT_SYMLINK_NOFOLLOW = 0x100
_RETRIES = 16
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""The flags of open(2) for a directory."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_ANY_BELOW = _OpenHow(DIRECTORY, 0, _IN_ROOT | _NO_MAGICLINKS | _NO_XDEV)
_OWN_ENTRY = _OpenHow(DIRECTORY, 0, _BENEATH | _NO_SYMLINKS | _NO_XDEV)
_FILE = _OpenHow(os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS)


def open_below(root_fd: int, path: bytes) -> int:
    """Return a descriptor of the directory at `path` below `root_fd`. Symbolic links are followed, but not out of it.

    Raise OSError: EXDEV if a mount point is on the way, ENOSYS on Linux before 5.6.
    """
    return _openat2(root_fd, path or b".", _ANY_BELOW)


def open_entry(parent_fd: int, name: bytes) -> int:
    """Return a descriptor of the directory `name` itself.

    Raise OSError: ELOOP if it is a symbolic link, EXDEV if it is a mount point.
    """
    return _openat2(parent_fd, name, _OWN_ENTRY)


def open_file(root_fd: int, path: bytes) -> int:
    """Return a descriptor of whatever is at `path` below `root_fd`, to read it. It does not wait for a fifo's writer.

    Raise OSError: ELOOP if a symbolic link is on the way or is its end.
    """
    return _openat2(root_fd, path, _FILE)


def _openat2(fd: int, path: bytes, how: _OpenHow) -> int:
    """Call openat2(2), again after EAGAIN: a directory on the way was renamed meanwhile. Raise OSError."""
    for _ in range(_RETRIES):
        opened: int = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def chmod_node(parent_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of a device or fifo without opening it, nor following a link. Raise OSError.

    Python 3.11 has no such call.
    """
    if _libc.fchmodat(parent_fd, name, mode, _AT_SYMLINK_NOFOLLOW):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
