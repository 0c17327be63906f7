"""Parser of containerd's filters, such as `name==a,labels."x/y"` (documentation of its Go package filters).

A filter is a list of selectors, all of which must match. Of several filters, one must match. A selector is the path of
a field, and either an operator with a value, or nothing to test for presence:

    selector = field { "." field } [ ("==" | "!=" | "~=") value ]
    field    = quoted | letters, digits, "_" and "-"
    value    = quoted | a sequence without white space and ","

`quoted` is a Go string; after `~=`, whose value is a regular expression, the quotes may also be / or |. Regular
expressions are Python's, which lack `\\z`, `\\pN` and the POSIX classes of Go's.
"""

import re
from collections.abc import Callable, Iterable
from re import Pattern

from dmthin.errors import InvalidValue

Adaptor = Callable[[tuple[str, ...]], str | None]
"""Returns the value of the field at a path, None if the object has no such field."""

Filter = Callable[[Adaptor], bool]
"""Returns whether an object matches."""

_WORD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,.=!~\"/|\x00-\x1f\x7f-\x9f][^\s,\x00-\x1f\x7f-\x9f]*")
_QUOTED = {quote: re.compile(rf"{re.escape(quote)}((?:[^\\\n{quote}]|\\.)*){re.escape(quote)}") for quote in '"/|'}
_ESCAPE = re.compile(r"\\(?:([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_SPACE = re.compile(r"\s*")
_NAMED = {"a": b"\a", "b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v", "\\": b"\\"}


def parse_all(texts: Iterable[str]) -> Filter:
    """Return a filter that matches if any of `texts` does, or if there are none. Raise InvalidValue."""
    filters = [parse(text) for text in texts]
    return lambda adaptor: not filters or any(one(adaptor) for one in filters)


def parse(text: str) -> Filter:
    """Return one filter; an empty text matches everything. Raise InvalidValue with the position."""
    if not text:
        return lambda _: True
    return _Parser(text).filter()


class _Parser:
    """A recursive descent parser of one filter. Its methods raise InvalidValue."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> Filter:
        selectors = [self._selector()]
        while self._at < len(self._text):
            self._expect(",", "a comma or the end")
            selectors.append(self._selector())
        return lambda adaptor: all(selector(adaptor) for selector in selectors)

    def _selector(self) -> Filter:
        fields = [self._field()]
        while self._next() == ".":
            self._at += 1
            fields.append(self._field())
        path = tuple(fields)
        if self._next() in ("", ","):
            return lambda adaptor: adaptor(path) is not None
        self._skip_space()
        match self._matched(_OPERATOR, "one of == != ~="):
            case "==":
                value = self._value('"')
                return lambda adaptor: adaptor(path) == value
            case "!=":
                value = self._value('"')
                return lambda adaptor: (adaptor(path) or "") != value
            case "~=":
                pattern = _compiled(self._value('"/|'))
                return lambda adaptor: pattern is not None and pattern.search(adaptor(path) or "") is not None
            case other:
                raise self._error(f"unknown operator {other}, expected one of == != ~=")

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
            raise self._error(f"unterminated {quote}")
        content = self._unescaped(found[1], quote)
        self._at = found.end()
        return content

    def _unescaped(self, text: str, quote: str) -> str:
        """Return the value of a Go string without its quotes. \\u and \\U are characters, other escapes are bytes."""
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
        raise self._error(f"unknown escape \\{letter or octal or short or long}")

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _expect(self, character: str, what: str) -> None:
        if self._next() != character:
            raise self._error(f"expected {what}")
        self._at += 1

    def _matched(self, pattern: Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._error(f"expected {what}")
        self._at = found.end()
        return found[0]

    def _error(self, reason: str) -> InvalidValue:
        return InvalidValue(f"invalid filter {self._text!r} at character {self._at + 1}: {reason}")


def _compiled(expression: str) -> Pattern[str] | None:
    """Return the compiled expression, None if it is invalid: as in containerd, it matches nothing then."""
    try:
        return re.compile(expression)
    except re.error:
        return None
