"""Take the archives out of the tests of other programs: the command line is FOLDER, which has their packages.

FOLDER/sources has the source packages of libarchive and GNU tar, FOLDER/python the package with CPython's tests,
unpacked. What is made lies in FOLDER/libarchive, FOLDER/gnutar and FOLDER/cpython.
"""

import binascii
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

_GNU_TAR_TESTS = re.compile(
    r"pipe|shortrec|numeric|append.*|delete.*|label.*|incr.*|listed.*|rename.*|chtype|link.*|long.*|lustar.*|old|time.*|"
    r"multiv.*|owner|map|sparse(?!06).*|spmvp.*|volume|volsize|shortfile|truncate|grow|xattr.*|acls.*|sel.*|capabs.*"
)
"""Names of files in tests/ of GNU tar: those whose archives have something of their own, but for holes of gigabytes."""

_LOCAL = """\
XFAILFILE=/nonexistent
decho() { echo "$*"; echo "$*" >&2; }
tarball_prereq() { false; }
"""
"""What tests call beside programs, to say which part begins, and to download an archive."""

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


def main(folder: Path) -> None:
    """Make the three folders. Raises what is wrong with the packages, and AssertionError if one has no archives."""
    sources = folder / "sources"
    take_libarchive(_source(sources, "libarchive"), folder / "libarchive")
    make_gnu_tar(_source(sources, "tar"), sources / "work", folder / "gnutar")
    shutil.rmtree(sources / "work")
    shutil.copytree(
        folder / "python/usr/lib/python3.11/test",
        folder / "cpython",
        ignore=lambda _, names: [name for name in names if ".tar" not in name],
    )
    for name in ("libarchive", "gnutar", "cpython"):
        assert any(path.is_file() for path in (folder / name).rglob("*")), f"no archives of {name}"


def _source(folder: Path, package: str) -> Path:
    (found,) = folder.glob(f"{package}_*.orig.tar.xz")
    return found


# --- libarchive -----------------------------------------------------------------------------------------------------


def take_libarchive(source: Path, folder: Path) -> None:
    """Decode its test data, in the folder of the program that they test."""
    with tarfile.open(source) as tar:
        for member in tar:
            match = re.fullmatch(r"[^/]+/(\w+)/test/([^/]+)\.uu", member.name)
            if match and (file := tar.extractfile(member)):
                path = folder / match[1] / match[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(decoded(file.read()))


def decoded(text: bytes) -> bytes:
    """Return the bytes of a uuencoded file. Raises binascii.Error."""
    data = b""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(b"begin "))
    for line in lines:
        if line == b"end":
            break
        try:
            data += binascii.a2b_uu(line)
        except binascii.Error:  # more characters than the length at its begin takes, as some encoders write
            data += binascii.a2b_uu(line[: (((line[0] - 32) & 63) * 4 + 5) // 3])
    return data


# --- GNU tar --------------------------------------------------------------------------------------------------------


def make_gnu_tar(source: Path, work: Path, folder: Path) -> None:
    """Run tests of GNU tar with this machine's tar, and keep the archives that they leave."""
    with tarfile.open(source) as tar:
        for member in tar:
            if member.name.endswith(("/tests/testsuite", "/build-aux/install-sh")):
                file = tar.extractfile(member)
                assert file is not None
                _write_program(work / "bin" / Path(member.name).name, file.read())
    generator = Path(__file__).with_name("genfile.py")
    _write_program(work / "bin/genfile", f'#!/bin/sh\nexec "{sys.executable}" "{generator}" "$@"\n'.encode())
    for name in ("checkseekhole", "ckmtime"):  # every file system of today finds holes, and has times of nanoseconds
        _write_program(work / "bin" / name, b"#!/bin/sh\n")
    places = ("at_srcdir", "abs_srcdir", "at_top_srcdir", "abs_top_srcdir", "abs_builddir", "abs_top_builddir")
    config = [*(f"{name}='{work}'" for name in places), "at_testdir=.", "EXEEXT=", f"AUTOTEST_PATH='{work}/bin'"]
    (work / "atconfig").write_text("\n".join([*config, "SHELL=/bin/bash\n"]))
    (work / "atlocal").write_text(f"PATH='{work}/bin':$PATH\n{_LOCAL}")
    suite = ["bash", str(work / "bin/testsuite")]
    listed = subprocess.run([*suite, "--list"], cwd=work, capture_output=True, text=True, check=True).stdout
    groups = {
        number: name
        for number, name in re.findall(r"^ *([0-9]+): ([\w-]+)\.at:", listed, re.MULTILINE)
        if _GNU_TAR_TESTS.fullmatch(name)
    }
    # It fails: some tests want more of genfile. With --debug it keeps what a test has made.
    environment = {**os.environ, "TARTEST_SKIP_LARGE_FILES": "1", "LC_ALL": "C"}
    subprocess.run(
        [*suite, "--debug", "--jobs=4", *groups], cwd=work, env=environment, capture_output=True, check=False
    )
    for number, name in groups.items():
        place = work / "testsuite.dir" / number.zfill(3)
        for path in sorted(place.rglob("*")):
            if path.is_file() and not path.is_symlink() and _is_archive(path):
                target = folder / name / path.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _write_program(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)


def _is_archive(path: Path) -> bool:
    """Whether a file begins with a header of a tar, or is compressed."""
    with path.open("rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return block.startswith(_COMPRESSED)
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
