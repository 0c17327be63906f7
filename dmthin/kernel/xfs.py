"""The geometry of a mounted XFS by ioctl: XFS_IOC_FSGEOMETRY_V1, fs/xfs/libxfs/xfs_fs.h."""

from pathlib import Path
from typing import Annotated, NamedTuple

from dmthin.kernel import block
from dmthin.kernel.cstruct import U32, CStruct
from dmthin.kernel.ioctl import ioctl
from dmthin.os_errors import os_failure

_FSGEOMETRY_V1 = 0x80705864


class Geometry(NamedTuple):
    """struct xfs_fsop_geom_v1, the fields that are read here: sizes in bytes and in blocks."""

    block_size: U32
    group_blocks: Annotated[int, "I", 8]
    blocks: Annotated[int, "Q", 32]


_GEOMETRY = CStruct("=", Geometry)


def geometry(mount_point: Path) -> Geometry:
    """Return the geometry of the XFS that is mounted at a folder. Raise NotFound, KernelError."""
    with block.opened(mount_point) as fd:
        try:
            return _GEOMETRY.unpack(ioctl(fd, _FSGEOMETRY_V1, bytes(112), "XFS_IOC_FSGEOMETRY_V1", mount_point))
        except OSError as error:
            raise os_failure(error, f"get the geometry of {mount_point}") from None
