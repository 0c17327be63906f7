"""Stores: images, containers, layers and snapshots on one thin pool. Front ends hold a `Store`."""
