"""Names of the formats that are no tar, or no compression that dmthin knows, for a message that says what a file is."""

_STARTS = (
    (b"\x5d\x00\x00", "compressed with lzma"),
    (b"\x1f\x9d", "compressed with compress (.Z)"),
    (b"\x1f\xa0", "compressed with compress -H (.Z)"),
    (b"\x1f\x1e", "compressed with pack (.z)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"\x02\x21\x4c\x18", "compressed with lz4 in its legacy format"),
    (b"\x89LZO\0\r\n\x1a\n", "compressed with lzop"),
    (b"LZIP", "compressed with lzip"),
    (b"LRZI", "compressed with lrzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"xar!", "a xar archive"),
    (b"MSCF", "a cabinet archive"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"\xc7\x71", "a cpio archive"),
    (b"!<arch>\n", "an ar archive, such as a Debian package"),
    (b"hsqs", "a squashfs image"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
)
"""The first bytes of each format, as in the magic files of file(1)."""


def foreign_format(start: bytes) -> str:
    """Return what a file is, by its first bytes, in words that follow "is"; empty if that is not known."""
    return next((what for magic, what in _STARTS if start.startswith(magic)), "")
