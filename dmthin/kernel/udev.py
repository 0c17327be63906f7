"""udev through pyudev: whether its daemon runs, and waiting for a block device that is still to come.

Nothing on a container's path waits for udev: nodes are devtmpfs's, and the events of those volumes tell the rules to
leave them alone (`devicemapper.UdevRules`).
"""

import time
from pathlib import Path

from dmthin.errors import Unavailable
from dmthin.kernel import block

_RECEIVE_BUFFER = 1 << 20


def is_running() -> bool:
    """Whether systemd-udevd answers in this system."""
    return Path("/run/udev/control").exists()


def wait_for_block_device(path: Path, timeout: float) -> None:
    """Return once `path` is a block device, as at boot, when a disk may come later than we do.

    Raises Unavailable after `timeout` seconds.
    """
    if block.is_block_device(path):
        return
    import pyudev  # only where there is something to wait for

    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev" if is_running() else "kernel")
    monitor.filter_by(subsystem="block")
    monitor.set_receive_buffer_size(_RECEIVE_BUFFER)
    monitor.start()
    deadline = time.monotonic() + timeout
    # Looking again after the monitor listens closes the gap in which the device could have come unseen.
    while not block.is_block_device(path):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"the block device {path} did not come within {timeout:g} s", hint="check its path")
        monitor.poll(min(left, 1.0))
