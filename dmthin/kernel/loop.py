"""Loop devices by ioctl: drivers/block/loop.c.

A loop device is identified by the device and inode number of its file, never by name: the kernel truncates the name to
63 bytes, and a file may be renamed. Autoclear is off, so a loop device survives the process that made it; those of a
pool are detached when the pool is deactivated.
"""

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dmthin.errors import NotFound, TimeLimit, Unavailable
from dmthin.kernel import devnode, devnumber, loopabi, sysfs
from dmthin.kernel.ioctl import ioctl
from dmthin.os_errors import LOOP, LOOP_CONTROL, LOOP_NODE, os_failure
from dmthin.steps import step

_DEVICE_NAME = re.compile(r"^DEVNAME=loop(\d+)$", re.MULTILINE)
_CTL_GET_FREE = 0x4C82
_SET_FD, _CLR_FD = 0x4C00, 0x4C01
_SET_STATUS64, _GET_STATUS64 = 0x4C04, 0x4C05
_SET_CAPACITY = 0x4C07
_SET_DIRECT_IO = 0x4C08
_CONFIGURE = 0x4C0A

_ATTEMPTS = 64
_DETACH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A bound loop device. `backing_dev` and `backing_inode` identify its file.

    `find` and `attach` make its node if that is missing.
    """

    index: int
    backing_dev: int
    backing_inode: int

    @property
    def node(self) -> str:
        """The path of its node."""
        return f"/dev/loop{self.index}"

    @property
    def number(self) -> str:
        """`major:minor`, which tables take in place of a node. Raise NotFound if the device is gone."""
        return _number(self.index)

    @property
    def backing_file(self) -> str:
        """The file's name now, as the kernel has it; empty if the device is not bound any more."""
        return _attribute(self.index, "loop/backing_file") or ""

    @property
    def direct_io(self) -> bool:
        """Whether the device bypasses the page cache, which not every file system allows."""
        return _attribute(self.index, "loop/dio") == "1"

    def refresh_size(self) -> None:
        """Give the device the size of its file, which has grown (LOOP_SET_CAPACITY). Raise NotFound, KernelError."""
        with step("loop refresh", self.node), _open(self.index) as fd:
            try:
                ioctl(fd, _SET_CAPACITY, 0, "LOOP_SET_CAPACITY", self.node)
            except OSError as error:
                raise os_failure(error, f"refresh the size of {self.node}", LOOP) from None

    def detach(self) -> None:
        """Unbind the device, if it is bound to this file, and wait until it is unbound.

        While it is open elsewhere, LOOP_CLR_FD succeeds, but the kernel unbinds only at the last close. Raise TimeLimit
        after 5 seconds of that, KernelError, NotPermitted.
        """
        with step("loop detach", self.node):
            with _open(self.index) as fd:
                if _backing(fd, self.index) != (self.backing_dev, self.backing_inode):
                    return
                try:
                    ioctl(fd, _CLR_FD, 0, "LOOP_CLR_FD", self.node)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise os_failure(error, f"detach {self.node}", LOOP) from None
            deadline = time.monotonic() + _DETACH_SECONDS
            while self._is_bound():
                if time.monotonic() > deadline:
                    raise TimeLimit(f"{self.node} is still open somewhere", hint=f"see: fuser -v {self.node}")
                time.sleep(0.002)
            devnode.remove_unused()

    def _is_bound(self) -> bool:
        """Return whether the device still has this file: another process may have bound the number to its own."""
        if _attribute(self.index, "loop/backing_file") is None:
            return False
        with _open(self.index) as fd:
            return _backing(fd, self.index) == (self.backing_dev, self.backing_inode)


def find(path: Path) -> LoopDevice | None:
    """Return the loop device that is bound to this very file, that of the lowest number if there are two, else None.

    Raise NotPermitted, KernelError.
    """
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return None
    for index in bound():
        try:
            with _open(index) as fd:
                identity = _backing(fd, index)
        except (NotFound, Unavailable):
            continue
        if identity == (wanted.st_dev, wanted.st_ino):
            devnode.ensure(f"/dev/loop{index}", _dev(index))
            return LoopDevice(index, *identity)
    return None


def is_at(path: Path, number: str) -> bool:
    """Return whether the device with this `major:minor` is a loop device that is bound to this very file."""
    index = _index(number)
    if index is None or _attribute(index, "loop/backing_file") is None:
        return False
    try:
        wanted = path.stat()
        with _open(index) as fd:
            return _backing(fd, index) == (wanted.st_dev, wanted.st_ino)
    except (FileNotFoundError, NotFound, Unavailable):
        return False


def attach(path: Path, *, read_only: bool = False, direct_io: bool = True) -> LoopDevice:
    """Bind a free loop device to a file, with direct I/O where the file system allows that (`LoopDevice.direct_io`).

    The number that LOOP_CTL_GET_FREE returns may be taken by another process in between, which EBUSY says; then this
    asks again. Raise Unavailable (no loop devices, none that is free, or its node is another device's), NotFound (no
    such file), NotPermitted, KernelError.
    """
    flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        file = os.open(path, flags)
    except OSError as error:
        raise os_failure(error, f"open {path}") from None
    try:
        with step("loop attach", path):
            return _attach(file, path, read_only=read_only, direct_io=direct_io)
    finally:
        os.close(file)


def _attach(file: int, path: Path, *, read_only: bool, direct_io: bool) -> LoopDevice:
    identity = os.fstat(file)
    for _ in range(_ATTEMPTS):
        index = _free_index()
        with _open(index) as fd:
            if _configure(fd, file, str(path.absolute()), read_only=read_only, direct_io=direct_io):
                try:
                    devnode.ensure(f"/dev/loop{index}", _dev(index))
                except BaseException:
                    ioctl(fd, _CLR_FD, 0, "LOOP_CLR_FD", path)
                    raise
                return LoopDevice(index, identity.st_dev, identity.st_ino)
    raise Unavailable(f"no free loop device for {path}", hint="see: losetup --list")


def _configure(fd: int, file: int, name: str, *, read_only: bool, direct_io: bool) -> bool:
    """Bind by one ioctl (Linux 5.8) or by the older pair. Return False if another process has taken this device."""
    flags = (loopabi.FLAG_READ_ONLY if read_only else 0) | (loopabi.FLAG_DIRECT_IO if direct_io else 0)
    try:
        ioctl(fd, _CONFIGURE, loopabi.pack_config(file, flags, name), "LOOP_CONFIGURE", name, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno in (errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return _configure_by_pair(fd, file, name, direct_io=direct_io)
        raise os_failure(error, f"bind a loop device to {name}", LOOP) from None
    return True


def _configure_by_pair(fd: int, file: int, name: str, *, direct_io: bool) -> bool:
    try:
        ioctl(fd, _SET_FD, file, "LOOP_SET_FD", name)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise os_failure(error, f"bind a loop device to {name}", LOOP) from None
    try:
        ioctl(fd, _SET_STATUS64, loopabi.pack_info(0, name), "LOOP_SET_STATUS64", name)
    except OSError as error:
        ioctl(fd, _CLR_FD, 0, "LOOP_CLR_FD", name)
        raise os_failure(error, f"name the loop of {name}", LOOP) from None
    if direct_io:
        # EINVAL: the file system has no direct I/O, and the page cache will do.
        try:
            ioctl(fd, _SET_DIRECT_IO, 1, "LOOP_SET_DIRECT_IO", name)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise os_failure(error, f"set direct I/O for {name}", LOOP) from None
    return True


def _backing(fd: int, index: int) -> tuple[int, int] | None:
    """Return the device and inode number of the bound file, None if the device is not bound."""
    try:
        status = ioctl(fd, _GET_STATUS64, bytes(loopabi.INFO_SIZE), "LOOP_GET_STATUS64", f"loop{index}")
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise os_failure(error, "get the status of a loop device", LOOP) from None
    return loopabi.unpack_backing(status)


def _free_index() -> int:
    try:
        control = devnode.open_control(devnode.LOOP_CONTROL)
    except OSError as error:
        raise os_failure(error, f"open {devnode.LOOP_CONTROL}", LOOP_CONTROL) from None
    try:
        return ioctl(control, _CTL_GET_FREE, 0, "LOOP_CTL_GET_FREE")
    except OSError as error:
        raise os_failure(error, "find a free loop device", LOOP) from None
    finally:
        os.close(control)


@contextmanager
def _open(index: int) -> Iterator[int]:
    node, dev = f"/dev/loop{index}", _dev(index)
    try:
        fd = devnode.open_block(node, os.O_RDWR, dev)
    except OSError as error:
        if error.errno != errno.EACCES or _attribute(index, "ro") != "1":
            raise os_failure(error, f"open {node}", LOOP_NODE) from None
        fd = devnode.open_block(node, os.O_RDONLY, dev)
    try:
        yield fd
    finally:
        os.close(fd)


def bound() -> list[int]:
    """Return the numbers of loop devices that are bound to a file, the lowest first. Raise Unavailable (no /sys)."""
    sysfs.require_mounted()
    names = (path.name.removeprefix("loop") for path in Path("/sys/block").glob("loop*"))
    indexes = sorted(int(name) for name in names if name.isdigit())
    return [index for index in indexes if _read(index, "loop/backing_file") is not None]


def _number(index: int) -> str:
    """Return `major:minor`. Raise NotFound, Unavailable (no /sys).

    The minor is the index only where the module's parameter max_part is 0: otherwise partitions have the numbers
    between.
    """
    if (number := _read(index, "dev")) is None:
        sysfs.require_mounted()
        raise NotFound(f"there is no /dev/loop{index}")
    return number


def _dev(index: int) -> int:
    """Return the `os.makedev` number. Raise NotFound, Unavailable (no /sys)."""
    return devnumber.parse(_number(index))


def _index(number: str) -> int | None:
    """Return the index of the loop device with this `major:minor`, None if it is no loop device, or a partition of one.

    Raise Unavailable (no /sys).
    """
    if (event := sysfs.attribute(f"dev/block/{number}/uevent", f"look for the device {number}")) is None:
        sysfs.require_mounted()
        return None
    found = _DEVICE_NAME.search(event)
    return int(found[1]) if found else None


def _attribute(index: int, name: str) -> str | None:
    """Return an attribute of a loop device, None if there is none: it is not bound. Raise Unavailable (no /sys)."""
    if (found := _read(index, name)) is None:
        sysfs.require_mounted()
    return found


def _read(index: int, name: str) -> str | None:
    return sysfs.attribute(f"block/loop{index}/{name}", f"look at /dev/loop{index}")
