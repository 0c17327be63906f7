"""The records of the loop driver's ABI, linux/loop.h."""

import os
from typing import Annotated, NamedTuple

from dmthin.kernel.cstruct import U32, U64, CStruct

FLAG_READ_ONLY, FLAG_DIRECT_IO = 1, 16

_NAME_SIZE = 64


class _Info(NamedTuple):
    """struct loop_info64. `file_name` is for people only; device and inode are those of the file."""

    device: U64 = 0
    inode: U64 = 0
    rdevice: U64 = 0
    offset: U64 = 0
    size_limit: U64 = 0
    number: U32 = 0
    encrypt_type: U32 = 0
    encrypt_key_size: U32 = 0
    flags: U32 = 0
    file_name: Annotated[bytes, "64s"] = b""
    crypt_name: Annotated[bytes, "64s"] = b""
    encrypt_key: Annotated[bytes, "32s"] = b""
    init_0: U64 = 0
    init_1: U64 = 0


class _Config(NamedTuple):
    """struct loop_config. `block_size` 0 is that of the file system."""

    fd: U32
    block_size: U32
    info: Annotated[bytes, "232s"]
    reserved: Annotated[bytes, "64s"] = b""


_INFO = CStruct("=", _Info)
_CONFIG = CStruct("=", _Config)
INFO_SIZE = _INFO.size
assert (INFO_SIZE, _CONFIG.size) == (232, 304)


def pack_config(file: int, flags: int, name: str) -> bytes:
    """Return the argument of LOOP_CONFIGURE for an open file. The kernel keeps 63 bytes of its name."""
    return _CONFIG.pack(_Config(file, 0, pack_info(flags, name)))


def pack_info(flags: int, name: str) -> bytes:
    """Return the argument of LOOP_SET_STATUS64. The kernel keeps 63 bytes of the name."""
    return _INFO.pack(_Info(flags=flags, file_name=os.fsencode(name)[: _NAME_SIZE - 1]))


def unpack_backing(status: bytes) -> tuple[int, int]:
    """Return the device and inode number of the bound file from the answer of LOOP_GET_STATUS64.

    The kernel encodes the device as huge_encode_dev does, which is how `st_dev` is encoded.
    """
    info = _INFO.unpack(status)
    return info.device, info.inode
