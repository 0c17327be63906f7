"""The sizes of dockerd's containers, read from its own records: it does not pass `--storage-opt size=` to containerd.

The option is `HostConfig.StorageOpt` in `<data-root>/containers/<id>/hostconfig.json` (container/container.go in moby),
and the key of the container's snapshot is its id, after containerd's namespace and a number. dockerd writes the file at
the end of `docker create`: it is not there yet at Prepare, nor at a first Mounts, but at that of each start.
"""

import json
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

from dmthin.containerd import keys
from dmthin.kernel.openat import open_file
from dmthin.store.config.options import parse_volume_size
from dmthin.units import MIB

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")

_LARGEST = 4 * MIB
"""Bytes of a record that is read."""


class DockerContainers:
    """The containers of the dockerd whose data root is `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._warned = False

    def size(self, key: str) -> int | None:
        """Return the bytes that the container of a snapshot's key was asked to have, None if it was not asked for any.

        Also None for a key of something else and for a container without a record. A record that cannot be read is
        logged and ignored. Raise InvalidValue for an option that Docker's own drivers refuse.
        """
        namespace, name = keys.parse(key)
        if not namespace or _ID.fullmatch(name) is None:
            return None
        try:
            options = _storage_options(self._read(name))
        except FileNotFoundError:
            if namespace == keys.DOCKER_NAMESPACE:
                self._warn_of_another_root(name)
            return None
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("cannot read the size of dockerd's container %s: %s", name, error)
            return None
        return parse_volume_size(f"{option}={value}" for option, value in options.items())

    def _read(self, name: str) -> bytes:
        """Return the record of a container. Raise OSError, ValueError (no regular file, too large)."""
        root = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_file(root, os.fsencode(f"containers/{name}/hostconfig.json"))
        finally:
            os.close(root)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("hostconfig.json is not a regular file")
            with open(fd, "rb", closefd=False) as file:
                content = file.read(_LARGEST + 1)
        finally:
            os.close(fd)
        if len(content) > _LARGEST:
            raise ValueError(f"hostconfig.json has more than {_LARGEST} bytes")
        return content

    def _warn_of_another_root(self, name: str) -> None:
        """Log once that a container of Docker's has no folder: at the first Mounts it has one, without a record yet."""
        if not self._warned and not (self._root / "containers" / name).is_dir():
            self._warned = True
            logger.warning(
                "dockerd's container %s is not below %s, and --storage-opt size= has no effect: "
                "give --docker-root the data root that `docker info` shows",
                name,
                self._root,
            )


def _storage_options(record: bytes) -> dict[str, str]:
    """Return HostConfig.StorageOpt, a map of strings. Raise ValueError for anything else than such a record."""
    content: Any = json.loads(record)
    if not isinstance(content, dict):
        raise ValueError("hostconfig.json is not a JSON object")
    options = content.get("StorageOpt") or {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ValueError("StorageOpt in hostconfig.json is not a map of strings")
    return options
