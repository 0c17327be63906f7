"""Archives made by hand, and how much of one is read."""

import tarfile
from typing import Literal

from dmthin.layers.entry import Reader


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], format: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    """An archive, without the padding to a full record."""
    out = b""
    for info, data in members:
        out += info.tobuf(format, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return out + bytes(1024)


def everything(reader: Reader) -> bytes:
    content = b""
    while piece := reader.read(100):
        content += piece
    return content
