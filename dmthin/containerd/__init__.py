"""The front end for containerd: a proxy snapshotter plugin."""
