"""The table of errno: which error each context makes of a number."""

import errno
import os
import resource

import pytest

from dmthin import os_errors
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
    Unavailable,
)
from dmthin.os_errors import Context, explain, os_failure

CONTEXTS: dict[str, Context] = {
    name: value
    for name, value in vars(os_errors).items()
    if name[0].isupper() and name.isupper() and isinstance(value, dict)
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_missing_right_is_named_in_every_context(name: str) -> None:
    for number in (errno.EPERM, errno.EACCES):
        error = explain(number, "cannot go on", CONTEXTS[name])
        assert type(error) is NotPermitted
        assert "root" in error.hint


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_number_without_a_meaning_is_passed_on_in_the_systems_words(name: str) -> None:
    error = explain(errno.EIO, "cannot read X", CONTEXTS[name])
    assert isinstance(error, KernelError)
    assert type(error) is KernelError
    assert (error.errno, str(error)) == (errno.EIO, "cannot read X: Input/output error")


@pytest.mark.parametrize(
    ("context", "number", "kind", "text"),
    [
        ("FILES", errno.ENOENT, NotFound, "cannot go: No such file or directory"),
        ("FILES", errno.EDQUOT, NoDataSpace, "--root"),
        ("FILES", errno.EFBIG, NoDataSpace, "no files that large: give a smaller size"),
        ("COMMAND", errno.ENOSPC, NoDataSpace, "free some space there"),
        ("COMMAND", errno.EFBIG, KernelError, "File too large"),
        ("DEVICE_MAPPER", errno.EBUSY, InUse, "the device is in use"),
        ("DEVICE_MAPPER", errno.ENXIO, NotFound, "there is no such device"),
        ("DEVICE_MAPPER", errno.ENODEV, Unavailable, "a device below it is not there"),
        ("DEVICE_MAPPER", errno.EOPNOTSUPP, NeedsRepair, "see: dmthin pool status"),
        ("DEVICE_MAPPER", errno.EINVAL, KernelInvalid, "dmesg"),
        ("DEVICE_MAPPER_NAME", errno.EBUSY, AlreadyExists, "see: dmsetup info"),
        ("DEVICE_MAPPER_NAME", errno.EINVAL, KernelInvalid, "dmesg"),
        ("DEVICE_MAPPER_NODE", errno.ENODEV, Unavailable, "modprobe dm-thin-pool"),
        ("LOOP", errno.ENXIO, NotFound, "no such loop device"),
        ("LOOP_NODE", errno.ENOENT, NotFound, "No such file"),
        ("LOOP_CONTROL", errno.ENODEV, Unavailable, "modprobe loop"),
        ("MOUNT", errno.EINVAL, InvalidValue, "superblock"),
        ("UNMOUNT", errno.EINVAL, NotFound, "nothing is mounted there"),
        ("UNMOUNT", errno.EBUSY, InUse, "busy"),
        ("MOUNT", errno.ENOSPC, KernelError, "No space left"),
        ("DETACHED_MOUNT", errno.ENOSYS, Unavailable, "5.6"),
        ("NAMESPACES", errno.EINVAL, Unavailable, "pid"),
        ("SANDBOX", errno.EINVAL, KernelError, "Invalid argument"),
        ("TREE_READ", errno.ESTALE, InvalidValue, "stop writing to the tree"),
        ("TREE_WRITE", errno.ENAMETOOLONG, InvalidValue, "File name too long"),
        ("TREE_WRITE", errno.ENOSYS, Unavailable, "openat2"),
        ("SOURCE", errno.ELOOP, InvalidValue, "symbolic links"),
    ],
)
def test_what_a_number_means_depends_on_the_call(context: str, number: int, kind: type[DmthinError], text: str) -> None:
    error = explain(number, "cannot go", CONTEXTS[context])
    assert type(error) is kind
    assert text in str(error)
    if isinstance(error, KernelError):
        assert error.errno == number


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.EMFILE, KernelError, "as many open files as its limit allows ("),
        (errno.ENFILE, KernelError, "fs.file-max"),
        (errno.EROFS, NotPermitted, "read-only"),
        (errno.ENAMETOOLONG, InvalidValue, "shorter"),
        (errno.ELOOP, InvalidValue, "links"),
    ],
)
def test_some_numbers_mean_the_same_in_each_call(number: int, kind: type[DmthinError], text: str) -> None:
    for context in ("COMMAND", "FILES", "LOOP", "LOOP_NODE", "LOOP_CONTROL", "DEVICE_MAPPER_NODE", "MOUNT"):
        error = explain(number, "cannot go", CONTEXTS[context])
        assert type(error) is kind
        assert text in str(error)


def test_the_limit_of_open_files_is_named() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"({limit}): raise it with ulimit -n" in str(explain(errno.EMFILE, "cannot open X", {}))


def test_root_is_not_told_to_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "root lacks this right here" in str(explain(errno.EPERM, "cannot open X", os_errors.RIGHTS))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(explain(errno.EPERM, "", os_errors.RIGHTS)) == "Operation not permitted: run this as root"


def test_the_kernels_own_words_go_before_the_systems() -> None:
    assert str(explain(errno.EINVAL, "cannot mount X", {}, reason="bad superblock")) == "cannot mount X: bad superblock"
    assert str(explain(0, "cannot mount X", {})) == "cannot mount X: the kernel gave no reason"
    assert str(explain(errno.EIO, "", {})) == "Input/output error"


def test_an_os_error_is_that_of_a_file_unless_a_context_is_given() -> None:
    error = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    assert str(os_failure(error, "open X")) == "cannot open X: Invalid argument"
    assert type(os_failure(error, "unmount X", os_errors.UNMOUNT)) is NotFound
