"""What GNU tar's tests call to make their files: as much of tests/genfile.c as making archives takes."""

import argparse
import sys
from pathlib import Path

_UNITS = {"b": 512, "k": 1 << 10, "K": 1 << 10, "m": 1 << 20, "M": 1 << 20, "g": 1 << 30, "G": 1 << 30}


def _number(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)


def _content(pattern: str, length: int) -> bytes:
    return bytes(length) if pattern == "zeros" else (bytes(range(256)) * (length // 256 + 1))[:length]


def _make_sparse(path: Path, words: list[str], block_size: int) -> None:
    """Write fragments: each a hole's size and letters, one for each block of data; a last size alone is a hole."""
    with path.open("wb") as file:
        for hole, letters in zip(words[::2], [*words[1::2], ""], strict=False):
            file.seek(_number(hole), 1)
            for letter in letters:
                file.write(letter.encode() * block_size)
        file.truncate()


def main() -> int:
    """Make what the command line says; 1 for what genfile can do and this cannot."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("-f", "--file", type=Path)
    add("-l", "--length", type=_number, default=0)
    add("-p", "--pattern", default="default")
    add("-s", "--sparse", action="store_true")
    add("-b", "--block-size", type=_number, default=512)
    add("-T", "--files-from")
    add("-0", "--null", action="store_true")
    add("--seek", type=_number, default=0)
    add("words", nargs="*")
    chosen, others = options.parse_known_args()
    if others:
        return 1
    content = _content(chosen.pattern, chosen.length)
    if chosen.sparse:
        _make_sparse(chosen.file, chosen.words, chosen.block_size)
    elif chosen.files_from is not None:
        listed = sys.stdin if chosen.files_from == "-" else Path(chosen.files_from).open()  # noqa: SIM115
        for name in filter(None, listed.read().split("\0" if chosen.null else "\n")):
            Path(name).write_bytes(content)
    elif chosen.file is None:
        sys.stdout.buffer.write(content)
    else:
        with chosen.file.open("r+b" if chosen.seek else "wb") as file:
            file.seek(chosen.seek)
            file.write(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
