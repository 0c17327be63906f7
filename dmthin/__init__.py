"""A device-mapper thin-pool storage manager: a snapshot volume for each image and container.

The names in `__all__` are public, as docs/python.md describes them. Everything else may change at any time. A name is
imported when it is first used: the command starts anew for each call, and most calls need few of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmthin.errors import (
        AlreadyExists,
        DmthinError,
        InUse,
        InvalidValue,
        KernelError,
        KernelInvalid,
        NeedsRepair,
        NoDataSpace,
        NoMetadataSpace,
        NotFound,
        NotPermitted,
        OperatorError,
        OutputLost,
        PartlyDone,
        RetryError,
        Status,
        TimeLimit,
        ToolFailed,
        Unavailable,
        UserError,
    )
    from dmthin.store import report
    from dmthin.store.create import create_store, is_store
    from dmthin.store.pool import PoolReport
    from dmthin.store.state.model import Kind, State, Volume
    from dmthin.store.store import Store

__version__ = "0.2.0"

__all__ = [
    "AlreadyExists",
    "DmthinError",
    "InUse",
    "InvalidValue",
    "KernelError",
    "KernelInvalid",
    "Kind",
    "NeedsRepair",
    "NoDataSpace",
    "NoMetadataSpace",
    "NotFound",
    "NotPermitted",
    "OperatorError",
    "OutputLost",
    "PartlyDone",
    "PoolReport",
    "RetryError",
    "State",
    "Status",
    "Store",
    "TimeLimit",
    "ToolFailed",
    "Unavailable",
    "UserError",
    "Volume",
    "__version__",
    "create_store",
    "is_store",
    "report",
]

_MODULES = {
    "Kind": "dmthin.store.state.model",
    "PoolReport": "dmthin.store.pool",
    "State": "dmthin.store.state.model",
    "Store": "dmthin.store.store",
    "Volume": "dmthin.store.state.model",
    "create_store": "dmthin.store.create",
    "is_store": "dmthin.store.create",
}
"""The modules of the public names that are not in dmthin.errors."""


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562). Raises AttributeError for any other name."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "report":
        return import_module("dmthin.store.report")
    return getattr(import_module(_MODULES.get(name, "dmthin.errors")), name)
