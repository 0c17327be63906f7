"""The archives of other programs' own tests are taken or refused as GNU tar and dockerd do, and give the same files.

GNU tar is the peer of an import, dockerd's own unpacker that of a layer. All that differs is in two tables.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from enginelib.daemons import SCRATCH
from tests.support.examples import is_deep
from tests.support.real_archives import (
    NAMES,
    NO_DIFFERENCE,
    ONLY_DMTHIN,
    ONLY_PEER,
    OTHER_FILES,
    Taken,
    Unpacker,
    content,
    decompressed,
    difference,
    dmthin_unpacks,
    docker_unpacks,
    gnu_tar_unpacks,
    now,
    taken,
)


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Archives, by patterns of their names, in which dmthin differs from its peer, and why.

    `said` is a regular expression for what the one that refuses says.
    """

    why: str
    difference: str
    said: str
    patterns: Sequence[str]


AS_IMPORT = (
    Exceptions(
        "no bytes, or a few, are no tar, but what a failed download leaves",
        ONLY_PEER,
        "not a tar archive: it is (empty|shorter than a header)",
        (
            "libarchive/cat/test_empty.[gxz]*",
            "libarchive/cat/test_expand.[bgxz]*",
            "libarchive/libarchive/test_read_format_raw.data.gz",
            "libarchive/libarchive/test_read_too_many_filters.gz",
        ),
    ),
    Exceptions(
        "an archive that announces a member which is not there is incomplete",
        ONLY_PEER,
        "it ends after an extended header",
        ("gnutar/multiv10/posix/2.tar",),
    ),
    Exceptions(
        "a hole in the middle of an archive is damage; Go's tar reader has the same rule",
        ONLY_PEER,
        "a lone block of zeros followed by data",
        ("libarchive/libarchive/test_compat_plexus_archiver_tar.tar",),
    ),
    Exceptions(
        "what follows compressed data is damage; GNU tar leaves that to bzip2, which warns",
        ONLY_PEER,
        "trailing data after its bzip2 data",
        ("libarchive/libarchive/test_compat_bzip2_2.tbz",),
    ),
    Exceptions(
        "GNU tar does not know zstd by a skippable frame, which pzstd writes first",
        ONLY_DMTHIN,
        "does not look like a tar archive",
        ("libarchive/libarchive/test_compat_zstd_2.tar.zst",),
    ),
    Exceptions(
        "`..` in names cannot leave the volume, so nothing need be refused",
        ONLY_DMTHIN,
        "Member name contains '\\.\\.'",
        ("libarchive/tar/test_patterns_4.tar",),
    ),
    Exceptions(
        "libarchive's own records of attributes are kept",
        OTHER_FILES,
        "",
        ("libarchive/libarchive/test_pax_xattr_header_libarchive.tar",),
    ),
    Exceptions(
        "GNU tar sets a directory's time when it first leaves it, and what comes later changes that",
        OTHER_FILES,
        "",
        ("libarchive/tar/test_patterns_2.tar",),
    ),
)

AS_LAYER = (
    Exceptions(
        "dockerd refuses what POSIX and GNU tar take: contiguous files, GNU tar's own types, unknown ones",
        ONLY_DMTHIN,
        "unhandled tar header type (55|65|68|83|86)|unlinkat .//: device or resource busy",
        (
            "cpython/testtar.tar",
            "gnutar/chtype/*gnu/*",
            "gnutar/incr0[1-9]/*gnu/*",
            "gnutar/incr1[01]/gnu/*",
            "gnutar/incremental/*gnu/*",
            "gnutar/label0[14]/*gnu/archive",
            "gnutar/label03/*gnu/iamanarchive",
            "gnutar/listed0[245]/*gnu/*",
            "gnutar/multiv04/*gnu/archive.a",
            "gnutar/rename0[1-6]/*gnu/*",
            "gnutar/sparse0[127]/*gnu/archive",
            "gnutar/volume/*gnu/archive",
            "libarchive/libarchive/test_compat_solaris_tar_acl.tar",
            "libarchive/libarchive/test_read_format_gtar_sparse_1_1[37].tar",
            "libarchive/libarchive/test_read_format_tar_empty_with_gnulabel.tar",
        ),
    ),
    Exceptions(
        "dockerd removes a file before it makes the same file's link to itself",
        ONLY_DMTHIN,
        "^link (\\S+) \\1: no such file or directory",
        ("gnutar/link01/*/archive",),
    ),
    Exceptions(
        "the directory in the name of a global header, which dockerd makes and its overlay2 driver does not",
        OTHER_FILES,
        "",
        (
            "gnutar/label01/posix/archive",
            "gnutar/label02/posix/4.tar",
            "gnutar/label03/posix/iamanarchive",
            "gnutar/label04/posix/archive",
            "gnutar/multiv02/pax/C.tar",
            "gnutar/multiv06/pax/arc.3",
            "gnutar/multiv10/posix/[25].tar",
            "gnutar/spmvp*/pax/arc.3",
        ),
    ),
)


def expected(name: str, table: Sequence[Exceptions]) -> Exceptions | None:
    """Return what a table says of an archive."""
    return next((row for row in table if any(fnmatchcase(name, pattern) for pattern in row.patterns)), None)


# --- which archives -------------------------------------------------------------------------------------------------


TAR = re.compile(r"\.(tar|pax|ustar|t[a-z]z)\b")
"""Tells names of tars."""

UNCOMPRESSED = re.compile(r"gnutar/.*|.*\.(tar|pax|ustar)")

GIBIBYTES = frozenset({"libarchive/libarchive/test_read_format_gtar_sparse_skip_entry.tar.Z"})
"""Archives with holes so large that dockerd's unpacker, which writes zeros, would take minutes and a disk."""


FAULTS = frozenset({"gnutar/xattr05/posix/archive.tar", "libarchive/cat/test_empty.gz"})
"""Archives that have shown a fault of dmthin's."""


def representative(table: Sequence[Exceptions]) -> list[str]:
    """Return fewer archives: of GNU tar's one for each kind of test, of what is no tar one for each kind of file.

    And one for each pattern of a table, and those that have shown a fault.
    """
    patterns = [pattern for row in table for pattern in row.patterns]
    chosen: dict[tuple[str, ...], str] = {}
    for name in NAMES:
        program, group, *_ = name.split("/")
        if program == "gnutar":
            kind: tuple[str, ...] = (program, group.rstrip("0123456789"))
        else:
            kind = (name,) if TAR.search(name) else (program, Path(name).suffix)
        chosen.setdefault(kind, name)
        for pattern in patterns:
            if fnmatchcase(name, pattern):
                chosen.setdefault(("exception", pattern), name)
    return sorted({*chosen.values(), *FAULTS})


IMPORTS = NAMES if is_deep() else representative(AS_IMPORT)
LAYERS = (
    [name for name in NAMES if name not in GIBIBYTES]
    if is_deep()
    else [name for name in representative(AS_LAYER) if name in FAULTS or UNCOMPRESSED.fullmatch(name)]
)
"""What is compressed differs from other archives only before a storage driver gets it."""


# --- comparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder on a file system with all extended attributes, which tmpfs has not."""
    path = SCRATCH / "real-archives"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def both(folder: Path, ours: Unpacker, theirs: Unpacker, *, modes: bool) -> tuple[Taken, Taken]:
    """Return what dmthin and a peer make of an archive."""
    since = now()
    return (
        taken(folder / "ours", ours, since, modes=modes),
        taken(folder / "theirs", theirs, since, modes=modes),
    )


def check(name: str, table: Sequence[Exceptions], ours: Taken, theirs: Taken) -> None:
    """Compare what dmthin and a peer have made of an archive. Where the table says that they differ, they must."""
    row = expected(name, table)
    found = difference(ours, theirs)
    said = ours.said if ours.refused else theirs.said
    if found == OTHER_FILES and row is None:
        assert ours.files == theirs.files
    assert found == (row.difference if row else NO_DIFFERENCE), said
    if row:
        assert re.search(row.said, said), row.why


@pytest.mark.parametrize("name", IMPORTS)
def test_as_gnu_tar(name: str, folder: Path) -> None:
    data, file = content(name), folder / "archive"
    file.write_bytes(data)
    check(name, AS_IMPORT, *both(folder, dmthin_unpacks(data, layer=False), gnu_tar_unpacks(file), modes=True))


@pytest.mark.parametrize("name", LAYERS)
def test_as_the_unpacker_of_dockerd(name: str, folder: Path) -> None:
    """dockerd decompresses a layer before its storage driver gets it; what it cannot decompress ends there."""
    layer = decompressed(content(name))
    if layer is not None:
        check(name, AS_LAYER, *both(folder, dmthin_unpacks(layer, layer=True), docker_unpacks(layer), modes=False))


@pytest.mark.parametrize("table", [AS_IMPORT, AS_LAYER], ids=["import", "layer"])
def test_the_tables_name_archives_that_there_are(table: Sequence[Exceptions]) -> None:
    patterns = [pattern for row in table for pattern in row.patterns]
    matches: Mapping[str, int] = {p: sum(fnmatchcase(name, p) for name in NAMES) for p in patterns}
    assert [pattern for pattern, count in matches.items() if not count] == []
