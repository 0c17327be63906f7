"""Recursive removal of directories, confined to them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dmthin.kernel.openat import open_entry
from dmthin.layers.nodes import ascend

KeepPredicate = Callable[[int, bytes], bool]
"""Returns whether a removal must keep this name in the directory with this inode number."""


def keep_nothing(directory: int, name: bytes) -> bool:
    """Keep no name."""
    return False


@dataclass(slots=True)
class _RemovalFrame:
    """A directory that is being emptied, on the explicit stack of `remove_tree`.

    `above` is the (device, inode) of its parent, `name` its name there, `inner` the subdirectories still to be removed,
    `before` its state at the start. `changed`: a name in it was removed; `kept`: a name in it was kept.
    """

    above: tuple[int, int]
    name: bytes
    inner: list[bytes]
    before: os.stat_result
    changed: bool
    kept: bool


def remove_tree(parent_fd: int, name: bytes, keeps: KeepPredicate = keep_nothing) -> bool:
    """Remove the directory `name` recursively, to any depth, with one descriptor and no recursion in Python.

    Names that `keeps` selects stay, and so do the directories above them, with their times. A selected directory is
    still emptied of what is not selected. Return whether `name` itself was removed. No symbolic link is followed.
    Raise OSError; EXDEV at a mount point, whose file system is left alone.
    """
    fd = open_entry(parent_fd, name)
    try:
        frames = [_enter(fd, os.fstat(parent_fd), name, keeps)]
        while True:
            frame = frames[-1]
            if frame.inner:
                name = frame.inner.pop()
                child = open_entry(fd, name)
                info = os.fstat(fd)
                os.close(fd)
                fd = child
                frames.append(_enter(fd, info, name, keeps))
                continue
            frames.pop()
            stays = frame.kept or keeps(frame.above[1], frame.name)
            if stays and frame.changed:
                os.utime(fd, ns=(frame.before.st_atime_ns, frame.before.st_mtime_ns))
            fd = ascend(fd, frame.above)
            if not stays:
                os.rmdir(frame.name, dir_fd=fd)
            if not frames:
                return not stays
            frames[-1].kept |= stays
            frames[-1].changed |= not stays
    finally:
        os.close(fd)


def _enter(fd: int, parent: os.stat_result, name: bytes, keeps: KeepPredicate) -> _RemovalFrame:
    """Unlink everything but directories in the open directory `name`, and return its frame."""
    before = os.fstat(fd)
    frame = _RemovalFrame((parent.st_dev, parent.st_ino), name, [], before, False, False)
    for inner, is_directory in list(scan(fd)):
        if is_directory:
            frame.inner.append(inner)
        elif keeps(before.st_ino, inner):
            frame.kept = True
        else:
            os.unlink(inner, dir_fd=fd)
            frame.changed = True
    return frame


def scan(fd: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the names in an open directory, and whether each is a directory. Raise OSError."""
    with os.scandir(fd) as found:
        for item in found:
            yield os.fsencode(item.name), item.is_dir(follow_symlinks=False)
