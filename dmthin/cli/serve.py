"""The daemon, from the command line."""

from pathlib import Path

from dmthin.cli.call import Call
from dmthin.errors import InvalidValue

_LOCK_TIMEOUT_SECONDS = 60.0
"""How long a request waits for a lock at most: its client has given up by then, or soon will."""


def serve(call: Call) -> None:
    """Serve the faces that were asked for, until a signal."""
    given, options = call.arguments, call.options
    docker, containerd = given.docker is not None, given.containerd is not None
    if options.dry_run or options.json:
        raise InvalidValue("serve takes neither --dry-run nor --json")
    if options.store_options and not containerd:
        raise InvalidValue("dockerd gives the storage options", hint="write them into its daemon.json: storage-opts")
    if given.snapshotter and not (containerd or given.print_containerd_config):
        raise InvalidValue("--snapshotter belongs to --containerd")

    from dmthin.containerd.config import containerd_config, parse_plans
    from dmthin.daemon import systemd
    from dmthin.daemon.serve import CONTAINERD_SOCKET, DOCKER_SOCKET, Faces
    from dmthin.daemon.serve import serve as run
    from dmthin.store.state.locks import limit_waits

    plans = parse_plans(given.snapshotter, options.root)
    socket = Path(given.containerd) if given.containerd else CONTAINERD_SOCKET
    if given.print_containerd_config:
        call.output.data(containerd_config(plans, socket))
        return
    if not docker and not containerd:
        raise InvalidValue("no face to serve", hint="give --docker, --containerd or both")
    if options.lock_timeout is None:
        limit_waits(_LOCK_TIMEOUT_SECONDS)
    systemd.set_up_logging(verbose=options.verbose, quiet=options.quiet)
    run(
        Faces(
            docker=(Path(given.docker) if given.docker else DOCKER_SOCKET) if docker else None,
            containerd=socket if containerd else None,
            snapshotters=plans,
            options=tuple(options.store_options),
        )
    )
