"""The face to containerd: a proxy snapshotter."""
