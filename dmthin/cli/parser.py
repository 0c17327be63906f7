"""The nouns and verbs, their arguments and their help. What a verb does is found by name when it runs."""

import argparse
import re
import sys
from argparse import Action, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

from dmthin import __version__
from dmthin.cli.global_options import UsageError, default_root
from dmthin.cli.output import reader_watched

_GLOBAL_HELP = "options for every command, anywhere on the line: dmthin --help"
_EXIT_STATUS = """\
exit status:
  0 done                     5 in use                  9 not there (device-mapper, a program)
  1 failed                   6 no data space          10 the pool needs repair or is read-only
  2 usage, bad value         7 no metadata space      11 time limit
  3 not found                8 not permitted          12 partly done
  4 exists already                                    128+n ended by signal n
"""
_GLOBAL_NAMES = (
    "--root",
    "--storage-opt",
    "--lock-timeout",
    "--json",
    "--dry-run",
    "--yes",
    "--verbose",
    "--quiet",
    "--help",
)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of ending the process, and knows what was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_HelpFormatter, allow_abbrev=False)
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but keep the words for what an error has to say."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for what argparse has found."""
        required = re.sub(r"^the following arguments are required: ", "missing: ", message)
        unknown = [word for word in self._words if word.startswith("-") and word not in ("-", "--")]
        if required != message and (unknown := [word for word in unknown if not self._knows(word)]):
            self.unexpected(unknown)
        self.reject(required)

    def reject(self, message: str, hint: str = "") -> NoReturn:
        """Raise UsageError with this command's usage; without a hint it points at its help."""
        raise UsageError(message, usage=self.format_usage(), hint=hint or f"see: {self.prog} --help")

    def unexpected(self, arguments: Sequence[str]) -> NoReturn:
        """Raise UsageError for arguments that nobody takes."""
        first = arguments[0]
        if not first.startswith("-") or first == "-":
            self.reject(f"unexpected argument {first!r}")
        if re.match(r"-[0-9]", first):
            self.reject(f"{first!r} is no size", "sizes only grow: write 20G, or +5G or +20% for that much more")
        name = first.partition("=")[0]
        known = [option for option in (*self._option_string_actions, *_GLOBAL_NAMES) if option.startswith("--")]
        self.reject(f"unknown option {name}", _did_you_mean(name, known))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Where help and version go. Unlike argparse's own, it hides no failure."""
        with reader_watched():
            (file or sys.stderr).write(message)

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what = (action.metavar if isinstance(action.metavar, str) else "value").lower()
        known = list(map(str, action.choices))
        hint = _elsewhere(self, value) or _did_you_mean(str(value), known) or f"there is {', '.join(known)}"
        self.reject(f"unknown {what} {value!r}", hint)

    def _knows(self, word: str) -> bool:
        return word.partition("=")[0] in self._option_string_actions or word[:2] in self._option_string_actions

    def children(self) -> "dict[str, Parser]":
        """The nouns or verbs below this one, by name and alias."""
        return {
            name: child
            for action in self._actions
            if isinstance(action.choices, dict)
            for name, child in action.choices.items()
        }


def parse(arguments: Sequence[str]) -> Namespace:
    """The namespace of one command, `run` being its function's name; without `run` no verb was given.

    The global options are gone from `arguments`. Raises UsageError; SystemExit after --help and --version.
    """
    words = list(arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    known: Namespace
    known, extra = build().parse_known_args(_with_joined_values(words))
    if extra:
        known.parser.unexpected(extra)
    return known


def build() -> Parser:
    """The whole tree of nouns and verbs."""
    parser = Parser(
        prog="dmthin",
        description="Manage a device-mapper thin pool: a volume of its own for each image and container.",
        epilog=(
            "examples:\n"
            "  dmthin pool create                        sparse files in /var/lib/dmthin, a thin pool on them\n"
            "  dmthin image import debian rootfs.tar.xz  an image, from a tar or a directory\n"
            "  dmthin container create debian web        a writable snapshot of it\n"
            "  dmthin container mount web                prints where\n"
            "  dmthin tree                               what there is\n\n" + _EXIT_STATUS
        ),
    )
    parser.set_defaults(parser=parser, takes_size=False)
    parser.add_argument("--version", action="version", version=f"dmthin {__version__}")
    _describe_globals(parser)
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_pool(nouns)
    _add_image(nouns)
    _add_container(nouns)
    _add_survey(nouns)
    _add_serve(nouns)
    _add_system(nouns)
    return parser


def _describe_globals(parser: Parser) -> None:
    """Let --help show the options that `split_globals` has taken out before."""
    group = parser.add_argument_group("options for every command, before or after it")
    add = group.add_argument
    add("--root", metavar="DIR", help=f"the store (default: $DMTHIN_ROOT, now {default_root()})")
    add(
        "--storage-opt",
        metavar="K=V",
        help="a storage option as Docker writes it, such as dm.basesize=20G; may be repeated",
    )
    add(
        "--lock-timeout",
        metavar="SECONDS",
        help="how long to wait for a lock that another process holds, or none for no limit"
        " (default: $DMTHIN_LOCK_TIMEOUT, else none, for serve 60)",
    )
    add("--json", action="store_true", help="write JSON: sizes in bytes, errors as objects on standard error")
    add("--dry-run", action="store_true", help="show the steps of a change as commands, and change nothing")
    add("-y", "--yes", action="store_true", help="do not ask before something is destroyed")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="show each step, with its duration, and programs as they run; -vv also each ioctl and each lock",
    )
    add("-q", "--quiet", action="store_true", help="only data and errors, no other words")


def _add_pool(nouns: Any) -> None:
    noun = _noun(nouns, "pool", "make, look at, grow and end the thin pool")
    verb = _verb(
        noun,
        "create",
        "pool:create",
        "make a store and its pool",
        "dmthin pool create",
        "dmthin pool create --storage-opt dm.datadev=/dev/sdb --storage-opt dm.metadatadev=/dev/sdc",
        "dmthin pool create --storage-opt dm.basesize=20G --storage-opt dm.fs=xfs --dry-run",
    )
    verb.add_argument("--force", action="store_true", help="overwrite a block device that carries data, once confirmed")
    verb = _verb(noun, "status", "pool:status", "how the pool is", "dmthin pool status", "dmthin --json pool status")
    verb.add_argument("-p", dest="exact", action="store_true", help="print sizes as exact bytes")
    verb = _verb(
        noun,
        "extend",
        "pool:extend",
        "let the pool grow, while it is in use",
        "dmthin pool extend --data-size 200G",
        "dmthin pool extend --data-size +50G --metadata-size +20%",
        note="Without a size, a block device that has grown is taken over in full.",
    )
    verb.add_argument("--data-size", metavar="SIZE", help="the new size (200G), or how much more (+50G, +20%%)")
    verb.add_argument("--metadata-size", metavar="SIZE", help="the same for the pool's metadata")
    _verb(noun, "trim", "pool:trim", "give free space back to the host", "dmthin pool trim")
    _verb(noun, "activate", "pool:activate", "bring the pool up, as any change does", "dmthin pool activate")
    _verb(noun, "deactivate", "pool:deactivate", "take the pool down cleanly", "dmthin pool deactivate")
    _verb(
        noun,
        "destroy",
        "pool:destroy",
        "remove the pool, every volume and the store",
        "dmthin pool destroy",
        "dmthin pool destroy --yes",
    )


def _add_image(nouns: Any) -> None:
    noun = _noun(nouns, "image", "import, list and remove images")
    verb = _verb(
        noun,
        "import",
        "image:import_",
        "make an image of a tar or a directory",
        "dmthin image import debian rootfs.tar.xz",
        "dmthin image import --storage-opt size=20G big /srv/tree",
        "docker export web | dmthin image import web -",
        takes_size=True,
    )
    verb.add_argument("name", metavar="NAME", help="the image's name, such as debian:13")
    verb.add_argument("source", metavar="SOURCE", help="a tar (plain, gz, xz, zst), a directory, or - for stdin")
    _listing(_verb(noun, "list", "survey:images", "list images", "dmthin image list", alias="ls"))
    verb = _verb(noun, "remove", "image:remove", "remove an image", "dmthin image remove debian", alias="rm")
    verb.add_argument("name", metavar="NAME")


def _add_container(nouns: Any) -> None:
    noun = _noun(nouns, "container", "create, mount, grow, commit and remove containers")
    verb = _verb(
        noun,
        "create",
        "container:create",
        "make a writable snapshot of an image, and print its block device",
        "dmthin container create debian web",
        "dmthin container create debian db --storage-opt size=20G",
        takes_size=True,
    )
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("name", metavar="NAME")
    _listing(_verb(noun, "list", "survey:containers", "list containers", "dmthin container ls", alias="ls"))
    verb = _verb(
        noun,
        "mount",
        "container:mount",
        "mount a container, and print where",
        "dmthin container mount web",
        "dmthin container mount web /mnt",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("directory", metavar="DIR", nargs="?", help="where (default: mnt/NAME in the store)")
    verb = _verb(noun, "unmount", "container:unmount", "unmount a container", "dmthin container unmount web")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--force", action="store_true", help="detach a busy mount, which ends with its last user")
    verb = _verb(
        noun,
        "resize",
        "container:resize",
        "let a container and its file system grow, in use or not",
        "dmthin container resize web 20G",
        "dmthin container resize web +5G",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("size", metavar="SIZE", help="the new size (20G), or how much more (+5G, +20%%)")
    verb = _verb(
        noun,
        "commit",
        "container:commit",
        "make an image of what a container holds now",
        "dmthin container commit web web:2",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("image", metavar="IMAGE", help="the new image's name")
    verb = _verb(
        noun,
        "remove",
        "container:remove",
        "remove a container",
        "dmthin container remove web",
        "dmthin container rm web --force",
        alias="rm",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--force", action="store_true", help="even if it is in use: it goes with its last user")


def _add_survey(nouns: Any) -> None:
    verb = _verb(
        nouns,
        "list",
        "survey:list_all",
        "list all volumes",
        "dmthin list",
        "dmthin list -o name,mapped -O -mapped",
        "dmthin ls -Hp -o name,size",
        alias="ls",
    )
    _listing(verb)
    verb = _verb(nouns, "tree", "survey:tree", "show which volume descends from which", "dmthin tree")
    verb.add_argument("-p", dest="exact", action="store_true", help="print sizes as exact bytes")
    verb = _verb(
        nouns,
        "du",
        "survey:du",
        "show what each volume takes of the pool, alone and shared",
        "dmthin du",
        "dmthin du -O -exclusive",
        note="MAPPED is what a volume refers to, EXCLUSIVE what would come back without it. Brings the pool up.",
    )
    _listing(verb)
    verb = _verb(nouns, "inspect", "survey:inspect", "tell all that is known of volumes, as JSON", "dmthin inspect web")
    verb.add_argument("names", metavar="NAME", nargs="+")


def _add_serve(nouns: Any) -> None:
    verb = _verb(
        nouns,
        "serve",
        "serve:serve",
        "be the storage of dockerd or containerd, until a signal",
        "dmthin serve --docker",
        "dmthin serve --docker /run/docker/plugins/dmthin.sock -v",
        "dmthin --root /var/lib/dmthin --storage-opt dm.basesize=20G serve --containerd",
        "dmthin serve --containerd --snapshotter dmthin --snapshotter big=/srv/dmthin,size=100G",
        note="Start it before dockerd, which is told by `--experimental --storage-driver dmthin`, or containerd, which"
        " is told by what --print-containerd-config prints. For containerd the store is made if it is not there.",
    )
    verb.add_argument(
        "--docker",
        metavar="SOCKET",
        nargs="?",
        const="",
        help="serve dockerd as a graphdriver plugin (default: /run/docker/plugins/dmthin.sock)",
    )
    verb.add_argument(
        "--containerd",
        metavar="SOCKET",
        nargs="?",
        const="",
        help="serve containerd as a proxy snapshotter (default: /run/dmthin/containerd.sock)",
    )
    verb.add_argument(
        "--snapshotter",
        metavar="NAME[=ROOT][,size=SIZE]",
        action="append",
        default=[],
        help="a name by which containerd calls it, with a store and a size of its own (default: dmthin, at --root)",
    )
    verb.add_argument(
        "--print-containerd-config", action="store_true", help="print what containerd's config.toml needs, and end"
    )


def _add_system(nouns: Any) -> None:
    noun = _noun(nouns, "system", "set up the machine around dmthin")
    verb = _verb(
        noun,
        "install",
        "system:install",
        "install the unit files of systemd and the rules of udev",
        "dmthin system install",
        "dmthin system install --destdir /mnt/image",
    )
    verb.add_argument("--destdir", metavar="DIR", default="/", help="the root of the system (default: /)")


def _listing(verb: Parser) -> None:
    """The options of every table."""
    add = verb.add_argument
    add("-o", "--output", dest="columns", metavar="FIELDS", help="a,b: these; +a,b: these too; help: all there are")
    add("-O", "--sort", metavar="FIELDS", help="sort by these fields, -a for descending")
    add("--noheadings", action="store_true", help="leave the headings out")
    add("-H", dest="tabs", action="store_true", help="for scripts: a tab between columns, no headings")
    add("-p", dest="exact", action="store_true", help="print sizes as exact bytes, times in seconds since 1970")


def _noun(nouns: Any, name: str, summary: str) -> Any:
    parser = nouns.add_parser(name, help=summary, description=_sentence(summary), epilog=_GLOBAL_HELP)
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="verbs", metavar="VERB")


def _verb(
    noun: Any,
    name: str,
    function: str,
    summary: str,
    *examples: str,
    alias: str = "",
    note: str = "",
    takes_size: bool = False,
) -> Parser:
    shown = "".join(f"  {example}\n" for example in examples)
    verb: Parser = noun.add_parser(
        name,
        help=summary,
        aliases=[alias] if alias else [],
        description=_sentence(summary) + (f" {note}" if note else ""),
        epilog=f"examples:\n{shown}\n{_GLOBAL_HELP}",
    )
    verb.set_defaults(parser=verb, run=f"dmthin.cli.{function}", takes_size=takes_size)
    return verb


def _with_joined_values(arguments: Sequence[str]) -> list[str]:
    """Let `-O -name` reach argparse as `--sort=-name`: it takes a word with a dash for an option."""
    joined: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            return [*joined, argument, *left]
        if argument in ("-O", "--sort"):
            value = next(left, None)
            joined.append(argument if value is None else f"--sort={value}")
        else:
            joined.append(argument)
    return joined


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1, 0.65)
    return f"did you mean {near[0]}?" if near else ""


def _elsewhere(parser: Parser, word: str) -> str:
    """The nouns that have a verb which was taken for a noun."""
    places = [f"{parser.prog} {name} {word}" for name, noun in parser.children().items() if word in noun.children()]
    return f"did you mean {' or '.join(places)}?" if places else ""


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."
