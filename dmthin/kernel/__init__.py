"""The only door to the kernel (device-mapper, loop, mounts, udev) and the only door to programs."""
