"""Detached mounts, which are in no mount namespace: fsopen(2), fsmount(2), open_tree(2), Linux 5.2.

A detached mount is a file descriptor and ends with it. So a process that is killed leaves no mount, no new namespace
gets a copy, and `..` at its root leads nowhere.
"""

import ctypes
import os
from pathlib import Path

from dmthin.errors import DmthinError
from dmthin.os_errors import DETACHED_MOUNT, explain
from dmthin.steps import traced

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 430, 431, 432
_CLOEXEC = 1  # FSOPEN_, FSMOUNT_
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # FSCONFIG_
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_FDCWD = -100
_NOSUID, _NODEV, _NOATIME = 0x2, 0x4, 0x10  # MOUNT_ATTR_
_MESSAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def mount(source: str, fs_type: str, options: str = "", *, read_only: bool = False) -> int:
    """Mount a file system detached, and return a descriptor of its root. Device nodes in it do not work (nodev).

    `options` are the file system's own, comma-separated. Raise NotPermitted, Unavailable (a kernel without fsopen), and
    KernelError with the file system's own words.
    """
    with traced("mount detached", source):
        return _mount(source, fs_type, options, read_only=read_only)


def clone(place: Path) -> int:
    """Return a descriptor of a detached copy of the mount at `place`, without the mounts below it.

    Raise NotPermitted, Unavailable (a kernel without open_tree), KernelError.
    """
    with traced("clone mount", place):
        root = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(place), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
        if root < 0:
            raise _failure(root, f"open the mount at {place}")
        return root


def _mount(source: str, fs_type: str, options: str, *, read_only: bool) -> int:
    context = _call(_FSOPEN, os.fsencode(fs_type), _CLOEXEC)
    if context < 0:
        raise _failure(context, f"mount a file system of the type {fs_type}")
    try:
        settings = [(_SET_STRING, "source", source)]
        if read_only:
            settings.append((_SET_FLAG, "ro", ""))  # the file system's own; that of the mount alone would not do
        for option in filter(None, options.split(",")):
            key, equals, value = option.partition("=")
            settings.append((_SET_STRING, key, value) if equals else (_SET_FLAG, key, ""))
        doing = f"mount {source}"
        for kind, key, value in settings:
            result = _call(_FSCONFIG, context, kind, key.encode(), os.fsencode(value) if kind == _SET_STRING else 0, 0)
            if result < 0:
                raise _failure(result, f"{doing} with {key}", _words(context))
        result = _call(_FSCONFIG, context, _CREATE, 0, 0, 0)
        if result < 0:
            raise _failure(result, doing, _words(context))
        root = _call(_FSMOUNT, context, _CLOEXEC, _NOSUID | _NODEV | _NOATIME)
        if root < 0:
            raise _failure(root, doing, _words(context))
        return root
    finally:
        os.close(context)


def _call(number: int, *arguments: int | bytes) -> int:
    """Return the result of a system call, or its errno as a negative number."""
    words = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    return result if result >= 0 else -ctypes.get_errno()


def _words(context: int) -> bytes:
    """Return the file system's own message of its failure: one line, after the prefix `e `."""
    try:
        return os.read(context, _MESSAGE)[2:]
    except OSError:
        return b""


def _failure(result: int, doing: str, words: bytes = b"") -> DmthinError:
    reason = words.decode(errors="replace").strip()
    return explain(-result, f"cannot {doing}", DETACHED_MOUNT, reason=reason)
