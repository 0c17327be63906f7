"""The daemon process, which serves the front ends for dockerd and containerd."""
