"""All calls of the kernel (device-mapper, loop devices, mounts, udev), and all runs of programs."""
