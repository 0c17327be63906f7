"""The verb serve: the daemon."""

from pathlib import Path

from dmthin.cli.call import Call
from dmthin.errors import InvalidValue

_LOCK_TIMEOUT_SECONDS = 60.0
"""Limit of the wait for a lock in a request. Clients time out at about that time or before."""


def serve(call: Call) -> None:
    """Serve dockerd, containerd or both until a signal. Raise InvalidValue, and what the daemon's `serve` raises."""
    given, options = call.arguments, call.options
    docker, containerd = given.docker is not None, given.containerd is not None
    if options.dry_run or options.json:
        raise InvalidValue("serve takes neither --dry-run nor --json")
    if options.store_options and not containerd:
        raise InvalidValue(
            "serve --docker takes its storage options from dockerd", hint="set storage-opts in dockerd's daemon.json"
        )
    if given.snapshotter and not (containerd or given.print_containerd_config):
        raise InvalidValue("--snapshotter requires --containerd")
    if (given.cri or given.diff or given.config_version) and not given.print_containerd_config:
        raise InvalidValue("--cri, --diff and --config-version require --print-containerd-config")
    if given.containerd_address and not (containerd or given.print_containerd_config):
        raise InvalidValue("--containerd-address requires --containerd")
    if given.docker_root and not (containerd or given.print_containerd_config):
        raise InvalidValue(
            "--docker-root requires --containerd",
            hint="with --docker, dockerd itself passes the sizes of its containers",
        )
    if given.docker_root and not given.docker_root.startswith("/"):
        raise InvalidValue(f"--docker-root is not an absolute path: {given.docker_root!r}")

    from dmthin.containerd.config import parse_snapshotters
    from dmthin.daemon import systemd
    from dmthin.daemon.serve import CONTAINERD_ADDRESS, CONTAINERD_SOCKET, DOCKER_SOCKET, FrontEnds
    from dmthin.daemon.serve import serve as run
    from dmthin.store.state.lock_waits import limit_waits

    snapshotters = parse_snapshotters(given.snapshotter, options.root)
    socket = Path(given.containerd) if given.containerd else CONTAINERD_SOCKET
    if given.print_containerd_config:
        from dmthin.cli.containerd_config import show

        show(call, snapshotters, socket)
        return
    if not docker and not containerd:
        raise InvalidValue("no front end to serve", hint="pass --docker, --containerd or both")
    if options.lock_timeout is None:
        limit_waits(_LOCK_TIMEOUT_SECONDS)
    systemd.set_up_logging(verbose=options.verbose, quiet=options.quiet)
    run(
        FrontEnds(
            docker=(Path(given.docker) if given.docker else DOCKER_SOCKET) if docker else None,
            containerd=socket if containerd else None,
            snapshotters=snapshotters,
            options=tuple(options.store_options),
            address=Path(given.containerd_address) if given.containerd_address else CONTAINERD_ADDRESS,
            docker_root=Path(given.docker_root) if given.docker_root else None,
        )
    )
