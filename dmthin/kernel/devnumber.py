"""Device numbers as /sys, /proc and the tables of device-mapper have them: `major:minor`."""

import os


def parse(text: str) -> int:
    """Return the `os.makedev` number of `major:minor`. Raise ValueError for anything else."""
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


def written(dev: int) -> str:
    """Return `major:minor` of an `os.makedev` number."""
    return f"{os.major(dev)}:{os.minor(dev)}"
