"""The command line: global options anywhere, nouns and verbs, what was probably meant, sizes."""

import math
from pathlib import Path

import pytest

from dmthin.cli import commands, main, program
from dmthin.cli.commands import parse
from dmthin.cli.global_options import GlobalOptions, UsageError, split_globals
from dmthin.cli.parser import Parser
from dmthin.cli.sizes import human, parse_request
from dmthin.errors import InvalidValue
from dmthin.store.state import lock_waits
from dmthin.units import GIB, KIB, MIB


def verbs() -> list[tuple[str, Parser]]:
    """Every verb as typed, aliases too, with its parser."""
    found = []
    for name, noun in commands.build().children().items():
        inner = noun.children()
        found += [(f"{name} {verb}", part) for verb, part in inner.items()] or [(name, noun)]
    return found


def test_the_contract_has_its_verbs() -> None:
    assert {name for name, _ in verbs()} == {
        *(f"pool {verb}" for verb in ("create", "status", "extend", "trim", "activate", "deactivate", "destroy")),
        *(f"image {verb}" for verb in ("import", "list", "ls", "remove", "rm")),
        *(
            f"container {verb}"
            for verb in ("create", "list", "ls", "mount", "unmount", "resize", "commit", "remove", "rm")
        ),
        *("list", "ls", "tree", "du", "inspect", "serve", "system install", "system containerd-config", "image verify"),
    }


@pytest.mark.parametrize(("name", "verb"), verbs())
def test_every_verb_has_a_function_and_examples(name: str, verb: Parser) -> None:
    function = verb.get_default("run")
    assert callable(program.command(function))
    text = verb.format_help()
    assert "examples:\n  " in text
    assert f"usage: dmthin {name}" in text or "ls" in name or "rm" in name


@pytest.mark.parametrize("place", [0, 1, 2])
def test_global_options_stand_anywhere(place: int) -> None:
    words = ["container", "create", "debian", "web"]
    given = ["--root", "/srv", "--json", "--storage-opt=size=20G", "-v", "--storage-opt", "dm.fs=xfs", "--yes"]
    options, rest = split_globals([*words[: 2 * place], *given, *words[2 * place :]])
    assert rest == words
    assert options == GlobalOptions(Path("/srv"), ("dm.fs=xfs",), ("size=20G",), json=True, yes=True, verbose=True)


def test_storage_options_add_up_and_the_last_root_wins() -> None:
    options, _ = split_globals(["--root=/a", "--storage-opt", "dm.a=1", "list", "--root", "/b", "--storage-opt=dm.b=2"])
    assert options.root == Path("/b")
    assert options.store_options == ("dm.a=1", "dm.b=2")


def test_short_options_may_be_joined() -> None:
    options, rest = split_globals(["-vy", "list", "-Hp", "--", "-vq"])
    assert (options.verbose, options.yes, options.quiet) == (True, True, False)
    assert rest == ["list", "-H", "-p", "--", "-vq"]
    with pytest.raises(UsageError, match="exclude each other"):
        split_globals(["list", "-vHq"])


def test_nothing_is_taken_behind_two_dashes() -> None:
    options, rest = split_globals(["image", "import", "--", "--json", "-q"])
    assert rest == ["image", "import", "--", "--json", "-q"]
    assert not options.json
    assert parse(rest).source == "-q"


def test_the_environment_names_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMTHIN_ROOT", "/srv/store")
    assert split_globals([])[0].root == Path("/srv/store")
    monkeypatch.setenv("DMTHIN_ROOT", "")
    assert split_globals([])[0].root == Path("/var/lib/dmthin")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["poool", "status"], "unknown command 'poool': did you mean pool?"),
        (["pool", "stauts"], "unknown verb 'stauts': did you mean status?"),
        (["pool", "xyzzy"], "unknown verb 'xyzzy': choose from create, status"),
        (["mount", "web"], "unknown command 'mount': did you mean dmthin container mount?"),
        (["create", "pool"], "unknown command 'create': did you mean dmthin pool create or dmthin container create?"),
        (["container", "destroy", "web"], "unknown verb 'destroy'"),
        (["list", "--no-headings"], "unknown option --no-headings: did you mean --noheadings?"),
        (["list", "--jsno"], "unknown option --jsno: did you mean --json?"),
        (["list", "extra"], "unexpected argument 'extra': see: dmthin list --help"),
        (["container", "create", "debian"], "missing argument: NAME: see: dmthin container create --help"),
        (["container", "create", "debian", "-rf"], "unknown option -rf: see: dmthin container create --help"),
        (["container", "resize", "web", "-1G"], "'-1G' is not a size: sizes can only grow: "),
        (["inspect"], "missing argument: NAME: see: dmthin inspect --help"),
    ],
)
def test_a_wrong_line_says_what_was_meant(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert str(error.value).startswith(message)
    assert error.value.usage.startswith("usage: dmthin")
    assert error.value.status.exit_code == 2


def test_options_without_their_value() -> None:
    for words in (["--root"], ["list", "--storage-opt"], ["--root="]):
        with pytest.raises(UsageError, match="needs a value"):
            split_globals(words)
    with pytest.raises(UsageError, match="exclude each other"):
        split_globals(["-v", "-q"])


def test_a_field_to_sort_by_may_begin_with_a_dash() -> None:
    assert parse(["list", "-O", "-mapped"]).sort == "-mapped"
    assert parse(["list", "-O", "mapped,-name"]).sort == "mapped,-name"


def test_no_verb_is_no_run() -> None:
    assert not hasattr(parse([]), "run")
    assert parse(["pool"]).parser.prog == "dmthin pool"


@pytest.mark.parametrize(
    ("text", "now", "size"),
    [
        ("20G", 10 * GIB, 20 * GIB),
        ("+5G", 10 * GIB, 15 * GIB),
        (" +512M ", GIB, GIB + 512 * MIB),
        ("+20%", 10 * GIB, 12 * GIB),
        ("+20%", 256 * MIB, 308 * MIB),
        ("+0.5 %", 200 * MIB, 201 * MIB),
        ("+0%", 256 * MIB, 256 * MIB),
        ("+100%", GIB, 2 * GIB),
        ("0", GIB, 0),
    ],
)
def test_sizes_absolute_and_relative(text: str, now: int, size: int) -> None:
    request = parse_request(text, "size")
    assert request.resolve(now) == size
    assert (request.size is None) == text.strip().startswith("+")


@pytest.mark.parametrize("text", ["", "+", "+%", "20%", "-5G", "-10%", "ten", "+5X", "5 G B", "++5G", "+5%%", "٣G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue, match="--data-size: "):
        parse_request(text, "--data-size")


def test_a_size_that_is_a_slip_of_the_hand() -> None:
    for text in ("20000P", "+20000P", "+999999%"):
        with pytest.raises(InvalidValue, match=r"more than any (volume|device) can have"):
            parse_request(text, "size").resolve(1 << 59)


def test_sizes_for_people() -> None:
    sizes = (0, 1, 512, KIB, 64 * KIB, 100 * KIB + 1, 1536 * KIB, 256 * MIB, 10 * GIB, 1023 * MIB, 42459533312)
    assert [human(size) for size in sizes] == [
        "0", "1B", "512B", "1K", "64K", "100K", "1.50M", "256M", "10G", "1.00G", "39.5G"
    ]  # fmt: skip


def test_verbosity_counts() -> None:
    assert [split_globals(words)[0].verbose for words in (["list"], ["list", "-v"], ["-vv", "list"])] == [0, 1, 2]
    assert split_globals(["--verbose", "list", "-v"])[0].verbose == 2


def test_how_long_a_lock_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def timeout(*words: str) -> float | None:
        return split_globals([*words, "list"])[0].lock_timeout

    monkeypatch.delenv("DMTHIN_LOCK_TIMEOUT", raising=False)
    assert timeout() is None
    assert (timeout("--lock-timeout", "1.5"), timeout("--lock-timeout=0")) == (1.5, 0)
    assert timeout("--lock-timeout", "none") == math.inf
    monkeypatch.setenv("DMTHIN_LOCK_TIMEOUT", "20")
    assert (timeout(), timeout("--lock-timeout", "3"), timeout("--lock-timeout", "none")) == (20, 3, math.inf)
    for wrong in ("-1", "5s", "inf", "1e3", "nan"):
        with pytest.raises(UsageError, match=f"--lock-timeout: '{wrong}' is not a number of seconds"):
            timeout(f"--lock-timeout={wrong}")
    monkeypatch.setenv("DMTHIN_LOCK_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="DMTHIN_LOCK_TIMEOUT: 'soon' is not"):
        timeout()
    monkeypatch.setenv("DMTHIN_LOCK_TIMEOUT", "")
    assert timeout() is None


def test_a_daemon_waits_for_a_lock_a_minute_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.delenv("DMTHIN_LOCK_TIMEOUT", raising=False)
    monkeypatch.setattr("dmthin.daemon.systemd.set_up_logging", lambda **_: None)
    monkeypatch.setattr("dmthin.daemon.serve.serve", lambda _: limits.append(lock_waits._limit))
    for words in ([], ["--lock-timeout", "5"], ["--lock-timeout", "none"]):
        assert main(["serve", "--docker", *words]) == 0
    assert limits == [60, 5, math.inf]
    assert main(["--root", "/nowhere", "list"]) == 3
    assert lock_waits._limit == math.inf
