"""A device-mapper thin-pool storage manager: a snapshot volume for each image and container."""

__version__ = "0.2.0"
