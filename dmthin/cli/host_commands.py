"""The commands of the host: the daemon, and the configuration of what is around it."""

from typing import Any

from dmthin.cli.parser import Parser, add_noun, add_verb


def add_serve(nouns: Any) -> None:
    """Add the verb that runs the daemon."""
    verb = add_verb(
        nouns,
        "serve",
        "serve:serve",
        "run as storage daemon for dockerd or containerd",
        "dmthin serve --docker",
        "dmthin serve --docker /run/docker/plugins/dmthin.sock -v",
        "dmthin --root /var/lib/dmthin --storage-opt dm.basesize=20G serve --containerd",
        "dmthin serve --containerd --snapshotter dmthin --snapshotter big=/srv/dmthin,size=100G",
        "dmthin serve --containerd --docker-root /var/lib/docker",
        note="Start it before the engine. dockerd up to 27 needs the options `--experimental --storage-driver dmthin`."
        " containerd, through which dockerd 28 and later use dmthin, needs the configuration that `dmthin system"
        " containerd-config --write` makes. A store for containerd is created if it does not exist.",
    )
    verb.add_argument(
        "--docker",
        metavar="SOCKET",
        nargs="?",
        const="",
        help="serve dockerd 1.13 to 27 as a graphdriver plugin (default socket: /run/docker/plugins/dmthin.sock)",
    )
    verb.add_argument(
        "--containerd",
        metavar="SOCKET",
        nargs="?",
        const="",
        help="serve containerd as a proxy snapshotter (default socket: /run/dmthin/containerd.sock)",
    )
    _add_snapshotter(verb)
    containerd_help = "containerd's own socket, for layers (default: /run/containerd/containerd.sock)"
    verb.add_argument("--containerd-address", metavar="SOCKET", help=containerd_help)
    verb.add_argument(
        "--docker-root",
        metavar="DIR",
        help="dockerd's data root, such as /var/lib/docker, for the sizes of `docker run --storage-opt size=` with"
        " dockerd 28 and later (default: none, and that option has no effect)",
    )
    verb.add_argument(
        "--print-containerd-config", action="store_true", help="print the lines for containerd's config.toml, and exit"
    )
    _add_parts(verb)


def add_system(nouns: Any) -> None:
    """Add the noun for the host's own configuration."""
    noun = add_noun(nouns, "system", "integrate dmthin with the host")
    verb = add_verb(
        noun,
        "install",
        "system:install",
        "install systemd units and udev rules",
        "dmthin system install",
        "dmthin system install --destdir /mnt/image",
    )
    verb.add_argument("--destdir", metavar="DIR", default="/", help="root directory of the target system (default: /)")
    verb = add_verb(
        noun,
        "containerd-config",
        "containerd_config:configure",
        "print what containerd's config.toml needs, or change the file",
        "dmthin system containerd-config",
        "dmthin system containerd-config --write --cri",
        "dmthin system containerd-config --remove --config /etc/containerd/config.toml",
        note="The file keeps its comments and order. It is replaced once `containerd config dump` takes the result; the"
        " old one stays beside it. Repeat with the same arguments to have nothing changed.",
    )
    verb.add_argument("--write", action="store_true", help="merge it into the file")
    verb.add_argument("--remove", action="store_true", help="take it out of the file, and put former values back")
    verb.add_argument(
        "--config",
        metavar="FILE",
        default="/etc/containerd/config.toml",
        help="the file (default: /etc/containerd/config.toml)",
    )
    verb.add_argument(
        "--containerd",
        metavar="PROGRAM",
        default="containerd",
        help="the containerd that reads the file (default: the one on the search path)",
    )
    verb.add_argument("--socket", metavar="SOCKET", help="dmthin's socket (default: /run/dmthin/containerd.sock)")
    _add_snapshotter(verb)
    _add_parts(verb)


def _add_snapshotter(verb: Parser) -> None:
    verb.add_argument(
        "--snapshotter",
        metavar="NAME[=ROOT][,size=SIZE]",
        action="append",
        default=[],
        help="a snapshotter for containerd, its store and the size of its snapshots; repeatable"
        " (default: dmthin, on the store at --root)",
    )


def _add_parts(verb: Parser) -> None:
    """Add the options that choose what of containerd's configuration is meant."""
    add = verb.add_argument
    add("--cri", action="store_true", help="also make it the snapshotter of the kubelet's images and pods")
    add("--diff", action="store_true", help="also add dmthin's diff service (containerd 1.7.4 and later)")
    add(
        "--config-version",
        metavar="N",
        type=int,
        choices=(2, 3),
        help="version of what is printed: 2, or 3 for containerd 2.x (default: 2)",
    )
