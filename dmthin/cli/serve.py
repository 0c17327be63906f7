"""The daemon, from the command line."""

from pathlib import Path

from dmthin.cli.call import Call
from dmthin.errors import InvalidValue


def serve(call: Call) -> None:
    """Serve the faces that were asked for, until a signal."""
    if call.arguments.docker is None:
        raise InvalidValue("no face to serve", hint="give --docker")
    if call.options.store_options or call.options.volume_options:
        raise InvalidValue("dockerd gives the storage options", hint="write them into its daemon.json: storage-opts")
    if call.options.dry_run or call.options.json:
        raise InvalidValue("serve takes neither --dry-run nor --json")
    from dmthin.daemon import systemd
    from dmthin.daemon.serve import DOCKER_SOCKET, Faces
    from dmthin.daemon.serve import serve as run

    systemd.set_up_logging(verbose=call.options.verbose, quiet=call.options.quiet)
    run(Faces(docker=Path(call.arguments.docker) if call.arguments.docker else DOCKER_SOCKET))
