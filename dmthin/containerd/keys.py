"""The keys of snapshots as containerd sends them to a snapshotter: NAMESPACE/NUMBER/KEY (core/metadata/snapshot.go)."""

import re

DOCKER_NAMESPACE = "moby"
"""dockerd's namespace in containerd, unless its `--containerd-namespace` names another."""

_FORM = re.compile(r"([^/]+)/[0-9]+/(.+)", re.DOTALL)


def parse(key: str) -> tuple[str, str]:
    """Return the namespace and the key that the client chose; no namespace and the whole text for another form."""
    found = _FORM.fullmatch(key)
    return (found[1], found[2]) if found else ("", key)
