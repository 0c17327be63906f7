"""The commands: nouns and verbs, their arguments and help. The function of a verb is imported when it runs."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from dmthin import __version__
from dmthin.cli import host_commands
from dmthin.cli.global_options import default_root
from dmthin.cli.parser import Parser, add_noun, add_verb

_EXIT_STATUS = """\
exit status:
  0 success                  5 in use                  9 unavailable (device-mapper, a program)
  1 failure                  6 no data space          10 the pool needs repair or is read-only
  2 usage, invalid value     7 no metadata space      11 time limit exceeded
  3 not found                8 not permitted          12 partly done
  4 already exists                                    13 the output could not be written
                                                      128+n terminated by signal n
"""

_NAME = "name of a volume; or an engine's name or id of it, or the beginning of an id"
_REMOVED = f"{_NAME}, of 12 digits at least with --force"


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse `arguments`, from which `split_globals` has removed the global options.

    In the namespace, `run` is the name of the command's function (`module:name`); without `run`, the verb is missing.
    Raise UsageError, and SystemExit after --help and --version.
    """
    return build().parse_command(arguments)


def build() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="dmthin",
        description="Manage a device-mapper thin pool with a volume for each image and container.",
        epilog=(
            "examples:\n"
            "  dmthin pool create                        create a thin pool on sparse files in /var/lib/dmthin\n"
            "  dmthin image import debian rootfs.tar.xz  create an image from a tar or a directory\n"
            "  dmthin container create debian web        create a writable snapshot of it\n"
            "  dmthin container mount web                mount it and print the mount point\n"
            "  dmthin tree                               show all volumes\n\n" + _EXIT_STATUS
        ),
    )
    parser.set_defaults(parser=parser, takes_size=False)
    parser.add_argument("--version", action="version", version=f"dmthin {__version__}")
    _describe_globals(parser)
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_pool(nouns)
    _add_image(nouns)
    _add_container(nouns)
    _add_listing(nouns)
    host_commands.add_serve(nouns)
    host_commands.add_system(nouns)
    return parser


def _describe_globals(parser: Parser) -> None:
    """Add the options that `split_globals` parses, for --help only."""
    group = parser.add_argument_group("global options, anywhere on the command line")
    add = group.add_argument
    add("--root", metavar="DIR", help=f"directory of the store (default: $DMTHIN_ROOT, now {default_root()})")
    add("--storage-opt", metavar="K=V", help="storage option as in Docker, such as dm.basesize=20G; repeatable")
    limit = "limit of waits for locks, or none (default: $DMTHIN_LOCK_TIMEOUT, otherwise none, and 60 for serve)"
    add("--lock-timeout", metavar="SECONDS", help=limit)
    add("--json", action="store_true", help="print JSON, sizes in bytes, errors as objects on standard error")
    add("--dry-run", action="store_true", help="print a change as commands, and change nothing")
    add("-y", "--yes", action="store_true", help="do not ask for confirmation")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="log each step with its duration, and each program; -vv also each ioctl and lock",
    )
    add("-q", "--quiet", action="store_true", help="print data and errors only")


def _add_pool(nouns: Any) -> None:
    noun = add_noun(nouns, "pool", "manage the thin pool")
    verb = add_verb(
        noun,
        "create",
        "pool:create",
        "create a store and its thin pool",
        "dmthin pool create",
        "dmthin pool create --storage-opt dm.datadev=/dev/sdb --storage-opt dm.metadatadev=/dev/sdc",
        "dmthin pool create --storage-opt dm.basesize=20G --storage-opt dm.fs=xfs --dry-run",
    )
    verb.add_argument(
        "--force", action="store_true", help="overwrite a block device that contains data, once confirmed"
    )
    verb = add_verb(
        noun, "status", "pool:status", "show pool status", "dmthin pool status", "dmthin --json pool status"
    )
    verb.add_argument("-p", dest="exact", action="store_true", help="print sizes in bytes")
    verb = add_verb(
        noun,
        "extend",
        "pool:extend",
        "extend the pool online",
        "dmthin pool extend --data-size 200G",
        "dmthin pool extend --data-size +50G --metadata-size +20%",
        note="Without a size, extend the pool to the size of a block device that was enlarged.",
    )
    verb.add_argument("--data-size", metavar="SIZE", help="new size of the data (200G), or increment (+50G, +20%%)")
    verb.add_argument("--metadata-size", metavar="SIZE", help="new size of the metadata, or increment")
    add_verb(noun, "trim", "pool:trim", "discard free blocks, returning their space to the host", "dmthin pool trim")
    add_verb(
        noun, "activate", "pool:activate", "activate the pool; other commands do so if needed", "dmthin pool activate"
    )
    add_verb(noun, "deactivate", "pool:deactivate", "deactivate all volumes and the pool", "dmthin pool deactivate")
    verb = add_verb(
        noun,
        "destroy",
        "pool:destroy",
        "remove all volumes, the pool and the store",
        "dmthin pool destroy",
        "dmthin pool destroy --yes",
    )
    verb.add_argument("--force", action="store_true", help="even if an engine has volumes there, once confirmed")


def _add_image(nouns: Any) -> None:
    noun = add_noun(nouns, "image", "manage images")
    verb = add_verb(
        noun,
        "import",
        "image:import_",
        "create an image from a tar or a directory",
        "dmthin image import debian rootfs.tar.xz",
        "dmthin image import --storage-opt size=20G big /srv/tree",
        "docker export web | dmthin image import web -",
        takes_size=True,
    )
    verb.add_argument("name", metavar="NAME", help="name of the image, such as debian:13")
    verb.add_argument("source", metavar="SOURCE", help="a tar (plain, gz, bz2, xz, zst), a directory, or - for stdin")
    _table_options(add_verb(noun, "list", "listing:images", "list images", "dmthin image list", alias="ls"))
    verb = add_verb(noun, "remove", "image:remove", "remove an image", "dmthin image remove debian", alias="rm")
    verb.add_argument("name", metavar="NAME", help=_REMOVED)
    verb.add_argument("--force", action="store_true", help="remove it even if an engine has it")
    verb = add_verb(
        noun,
        "verify",
        "image:verify",
        "compare the layers of an engine's images with the tars they were made from; exit status 10 if one differs",
        "dmthin --root /var/lib/docker/dmthin image verify",
        "dmthin --root /var/lib/docker/dmthin image verify web:1",
        "dmthin image verify sha256:4b02",
    )
    text = "name of an image, as docker shows it; under containerd its digest; default: all"
    verb.add_argument("names", metavar="IMAGE", nargs="*", help=text)
    text = "containerd's root, with its blobs (default: /var/lib/containerd)"
    verb.add_argument("--containerd-root", metavar="DIR", help=text)


def _add_container(nouns: Any) -> None:
    noun = add_noun(nouns, "container", "manage containers")
    verb = add_verb(
        noun,
        "create",
        "container:create",
        "create a container from an image, and print its block device",
        "dmthin container create debian web",
        "dmthin container create debian db --storage-opt size=20G",
        takes_size=True,
    )
    verb.add_argument("image", metavar="IMAGE", help=_NAME)
    verb.add_argument("name", metavar="NAME", help="name of the new container")
    _table_options(add_verb(noun, "list", "listing:containers", "list containers", "dmthin container ls", alias="ls"))
    verb = add_verb(
        noun,
        "mount",
        "container:mount",
        "mount a container, and print the mount point",
        "dmthin container mount web",
        "dmthin container mount web /mnt",
    )
    verb.add_argument("name", metavar="NAME", help=_NAME)
    verb.add_argument("directory", metavar="DIR", nargs="?", help="mount point (default: mnt/NAME in the store)")
    verb = add_verb(noun, "unmount", "container:unmount", "unmount a container", "dmthin container unmount web")
    verb.add_argument("name", metavar="NAME", help=_NAME)
    verb.add_argument("--force", action="store_true", help="unmount lazily if the file system is in use")
    verb = add_verb(
        noun,
        "resize",
        "container:resize",
        "extend a container and its file system, online or offline",
        "dmthin container resize web 20G",
        "dmthin container resize web +5G",
    )
    verb.add_argument("name", metavar="NAME", help=_NAME)
    verb.add_argument("size", metavar="SIZE", help="new size (20G), or increment (+5G, +20%%)")
    verb = add_verb(
        noun,
        "commit",
        "container:commit",
        "create an image from a container's current contents",
        "dmthin container commit web web:2",
    )
    verb.add_argument("name", metavar="NAME", help=_NAME)
    verb.add_argument("image", metavar="IMAGE", help="name of the new image")
    verb = add_verb(
        noun,
        "remove",
        "container:remove",
        "remove a container",
        "dmthin container remove web",
        "dmthin container rm web --force",
        alias="rm",
    )
    verb.add_argument("name", metavar="NAME", help=_REMOVED)
    verb.add_argument(
        "--force",
        action="store_true",
        help="remove it even if an engine has it, or if it is in use: its space is freed after its last use",
    )


def _add_listing(nouns: Any) -> None:
    verb = add_verb(
        nouns,
        "list",
        "listing:list_all",
        "list all volumes",
        "dmthin list",
        "dmthin list -o name,mapped -O -mapped",
        "dmthin ls -Hp -o name,size",
        alias="ls",
    )
    _table_options(verb)
    verb = add_verb(nouns, "tree", "listing:tree", "show volumes as a tree of snapshots", "dmthin tree")
    verb.add_argument("-p", dest="exact", action="store_true", help="print sizes in bytes")
    _no_trunc(verb)
    verb = add_verb(
        nouns,
        "du",
        "listing:du",
        "show the pool space that volumes use, exclusive and shared",
        "dmthin du",
        "dmthin du -O -exclusive",
        note="MAPPED is the space that a volume maps, EXCLUSIVE the part that its removal frees. Activates the pool.",
    )
    _table_options(verb)
    verb = add_verb(nouns, "inspect", "listing:inspect", "show all details of volumes as JSON", "dmthin inspect web")
    verb.add_argument("names", metavar="NAME", nargs="+", help=_NAME)


def _table_options(verb: Parser) -> None:
    """Add the options of a command that prints a table."""
    add = verb.add_argument
    add(
        "-o",
        "--output",
        dest="columns",
        metavar="FIELDS",
        help="fields to print: a,b; +a,b adds to the default; or help",
    )
    add("-O", "--sort", metavar="FIELDS", help="fields to sort by; -a sorts descending")
    add("--noheadings", action="store_true", help="print no headings")
    add("-H", dest="tabs", action="store_true", help="for scripts: separate columns by tabs, print no headings")
    add("-p", dest="exact", action="store_true", help="print sizes in bytes, times in seconds since 1970")
    _no_trunc(verb)


def _no_trunc(verb: Parser) -> None:
    verb.add_argument("--no-trunc", action="store_true", help="on a terminal, do not cut ids to 12 digits")
