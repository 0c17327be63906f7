"""containerd's filters: `name==a,labels."x/y"` and the like, as the documentation of its package filters has them.

A filter is selectors, all of which must match; of several filters one must. A selector is a field's path, and an
operator with a value or nothing, which asks for presence:

    selector = field { "." field } [ ("==" | "!=" | "~=") value ]
    field    = quoted | letters, digits, "_" and "-"
    value    = quoted | a run without white space and ","

Quoted is a string of Go's; after `~=`, whose value is a regular expression, it may stand in / or | as well. Regular
expressions are Python's, which has what Go's have but for `\\z`, `\\pN` and the classes of POSIX.
"""

import re
from collections.abc import Callable, Iterable
from re import Pattern

from dmthin.errors import InvalidValue

Adaptor = Callable[[tuple[str, ...]], str | None]
"""What a path of fields leads to in the thing at hand, None where it has no such field."""

Filter = Callable[[Adaptor], bool]

_WORD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,.=!~\"/|\x00-\x1f\x7f-\x9f][^\s,\x00-\x1f\x7f-\x9f]*")
_QUOTED = {quote: re.compile(rf"{re.escape(quote)}((?:[^\\\n{quote}]|\\.)*){re.escape(quote)}") for quote in '"/|'}
_ESCAPE = re.compile(r"\\(?:([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_SPACE = re.compile(r"\s*")
_NAMED = {"a": b"\a", "b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v", "\\": b"\\"}


def parse_all(texts: Iterable[str]) -> Filter:
    """What one of the filters takes, or everything if there is none. Raises InvalidValue, which shows where."""
    wanted = [parse(text) for text in texts]
    return lambda thing: not wanted or any(one(thing) for one in wanted)


def parse(text: str) -> Filter:
    """One filter; an empty one takes everything. Raises InvalidValue."""
    if not text:
        return lambda _: True
    return _Parser(text).filter()


class _Parser:
    """One reading of a filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> Filter:
        selectors = [self._selector()]
        while self._at < len(self._text):
            self._take(",", "a comma or the end")
            selectors.append(self._selector())
        return lambda thing: all(selector(thing) for selector in selectors)

    def _selector(self) -> Filter:
        fields = [self._field()]
        while self._next() == ".":
            self._at += 1
            fields.append(self._field())
        path = tuple(fields)
        if self._next() in ("", ","):
            return lambda thing: thing(path) is not None
        self._skip_space()
        match self._matched(_OPERATOR, "one of == != ~="):
            case "==":
                value = self._value('"')
                return lambda thing: thing(path) == value
            case "!=":
                value = self._value('"')
                return lambda thing: (thing(path) or "") != value
            case "~=":
                pattern = _compiled(self._value('"/|'))
                return lambda thing: pattern is not None and pattern.search(thing(path) or "") is not None
            case other:
                raise self._wrong(f"{other} is none of == != ~=")

    def _field(self) -> str:
        self._skip_space()
        return self._quoted() if self._next() == '"' else self._matched(_WORD, "a field's name")

    def _value(self, quotes: str) -> str:
        self._skip_space()
        return self._quoted() if (first := self._next()) and first in quotes else self._matched(_VALUE, "a value")

    def _quoted(self) -> str:
        quote = self._next()
        found = _QUOTED[quote].match(self._text, self._at)
        if found is None:
            raise self._wrong(f"the {quote} has no end")
        content = self._unescaped(found[1], quote)
        self._at = found.end()
        return content

    def _unescaped(self, text: str, quote: str) -> str:
        """A string of Go's without its quotes: escapes are bytes, or characters for \\u and \\U."""
        content, end = bytearray(), 0
        for found in _ESCAPE.finditer(text):
            content += text[end : found.start()].encode("utf-8", "surrogateescape")
            content += self._escape(*found.groups(), quote=quote)
            end = found.end()
        content += text[end:].encode("utf-8", "surrogateescape")
        return content.decode("utf-8", "surrogateescape")

    def _escape(
        self, octal: str | None, byte: str | None, short: str | None, long: str | None, letter: str, *, quote: str
    ) -> bytes:
        if letter == quote:
            return quote.encode()
        if letter in _NAMED:
            return _NAMED[letter]
        number = int(octal, 8) if octal else int(byte or short or long or "-1", 16)
        if byte or (octal and number < 0x100):
            return bytes([number])
        if (short or long) and number < 0x110000 and not 0xD800 <= number < 0xE000:
            return chr(number).encode()
        raise self._wrong(f"there is no escape \\{letter or octal or short or long} in Go")

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, character: str, what: str) -> None:
        if self._next() != character:
            raise self._wrong(f"expected {what}")
        self._at += 1

    def _matched(self, pattern: Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._wrong(f"expected {what}")
        self._at = found.end()
        return found[0]

    def _wrong(self, why: str) -> InvalidValue:
        return InvalidValue(f"the filter {self._text!r} is wrong at character {self._at + 1}: {why}")


def _compiled(expression: str) -> Pattern[str] | None:
    """None for what is no regular expression, which matches nothing."""
    try:
        return re.compile(expression)
    except re.error:
        return None
