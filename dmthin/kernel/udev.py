"""udev through pyudev: whether its daemon runs, and waiting for a block device that appears late.

Nothing on a container's path waits for udev: devtmpfs makes the nodes, and the events of those volumes carry flags that
make udev's rules ignore them (`devicemapper.UdevRules`).
"""

import time
from pathlib import Path

from dmthin.errors import Unavailable
from dmthin.kernel import block

_RECEIVE_BUFFER = 1 << 20


def is_running() -> bool:
    """Return whether systemd-udevd runs."""
    return Path("/run/udev/control").exists()


def wait_for_block_device(path: Path, timeout: float) -> None:
    """Return once `path` is a block device: at boot a disk may appear later than this process.

    Raise Unavailable after `timeout` seconds.
    """
    if block.is_block_device(path):
        return
    import pyudev  # only where there is something to wait for

    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev" if is_running() else "kernel")
    monitor.filter_by(subsystem="block")
    monitor.set_receive_buffer_size(_RECEIVE_BUFFER)
    monitor.start()
    deadline = time.monotonic() + timeout
    # The device may have appeared before the monitor listened, so it is looked for again first.
    while not block.is_block_device(path):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"the block device {path} did not appear within {timeout:g} s", hint="check its path")
        monitor.poll(min(left, 1.0))
