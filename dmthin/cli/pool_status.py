"""The pool's status report as text and as JSON."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmthin.cli.fields import UNKNOWN
from dmthin.cli.output import one_line
from dmthin.cli.sizes import human
from dmthin.cli.table import aligned
from dmthin.units import METADATA_BLOCK, format_percent

if TYPE_CHECKING:
    from dmthin.kernel.thin import PoolStatus
    from dmthin.store.pool import PoolReport
    from dmthin.store.state.model import Volume


def as_json(root: str, report: "PoolReport") -> dict[str, Any]:
    """Return the report as JSON, with sizes in bytes. What is unknown of an inactive or failed pool is None.

    `kernel` contains the fields of the kernel's status line, in blocks.
    """
    known = _known(report)

    def if_known(value: int) -> int | None:
        return value if known else None

    return {
        "root": root,
        "name": report.name,
        "active": report.active,
        "mode": report.mode,
        "block_size": report.block_size,
        "data": report.data or None,
        "data_size": if_known(report.data_size),
        "data_used": if_known(report.data_used),
        "data_free": if_known(report.data_size - report.data_used),
        "data_available": if_known(report.data_available),
        "data_allocated": report.data_allocated,
        "data_length": _length(report.data, report.data_allocated),
        "metadata": report.metadata or None,
        "metadata_size": if_known(report.metadata_size),
        "metadata_used": if_known(report.metadata_used),
        "metadata_reserve": if_known(report.metadata_reserve),
        "metadata_available": if_known(report.metadata_available),
        "metadata_allocated": report.metadata_allocated,
        "metadata_length": _length(report.metadata, report.metadata_allocated),
        "host_free": report.host_free,
        "volumes": report.volumes,
        "provisioned": report.provisioned,
        "overcommit": round(report.provisioned / report.data_size, 4) if known and report.data_size else None,
        "kernel": _kernel_line(report.status) if report.status and known else None,
    }


def as_text(root: str, report: "PoolReport", *, exact: bool = False) -> str:
    """Return the report as aligned lines of a key and a value."""
    size: Callable[[int], str] = str if exact else human
    lines = [["store", one_line(root)], ["pool", report.name], ["mode", report.mode]]
    if report.status is not None and _known(report):
        lines += _kernel_rows(report.status, size)
        lines += _use_rows(report, size)
    for what, path, allocated in (
        ("data", report.data, report.data_allocated),
        ("metadata", report.metadata, report.metadata_allocated),
    ):
        length = _length(path, allocated)
        if path and allocated is not None and length is not None:
            text = f"{one_line(path)}, {size(allocated)} allocated of {size(length)}"
            lines.append([f"{what} file", text])
        elif path:
            missing = "" if Path(path).exists() else ", missing"
            lines.append([f"{what} device" if not missing else what, one_line(path) + missing])
    lines.append(["host free", UNKNOWN if report.host_free is None else size(report.host_free)])
    lines.append(["volumes", str(report.volumes)])
    ratio = f", {report.provisioned / report.data_size:.2f} times the pool" if _known(report) else ""
    lines.append(["provisioned", size(report.provisioned) + ratio])
    return aligned(lines)


def losses(root: str, report: "PoolReport", volumes: "Iterable[Volume]") -> list[str]:
    """Return what the destruction of a store would delete, one line each for the store, volumes, files and devices."""
    kinds = [volume.kind.value for volume in volumes]
    counts = [f"{kinds.count(kind)} {kind}{'' if kinds.count(kind) == 1 else 's'}" for kind in dict.fromkeys(kinds)]
    used = f", {human(report.data_used)} in use" if _known(report) else ""
    files = [path for path, allocated in _files(report) if allocated is not None]
    devices = [path for path, allocated in _files(report) if path and allocated is None]
    lines = [f"the store {one_line(root)} and its pool {report.name}{used}"]
    lines.append(f"its volumes: {', '.join(counts) or 'none'}")
    if files:
        lines.append(f"its files: {', '.join(map(one_line, files))}")
    if devices:
        lines.append(f"the content of its devices: {', '.join(map(one_line, devices))}")
    return lines


def _files(report: "PoolReport") -> tuple[tuple[str, int | None], ...]:
    return (report.data, report.data_allocated), (report.metadata, report.metadata_allocated)


def _known(report: "PoolReport") -> bool:
    """Return whether the kernel reports sizes: not for an inactive or failed pool."""
    return report.status is not None and report.status.data_total_blocks > 0


def _kernel_rows(status: "PoolStatus", size: Callable[[int], str]) -> list[list[str]]:
    held = "none" if status.held_metadata_root is None else f"at metadata block {status.held_metadata_root}"
    return [
        ["needs check", "yes" if status.needs_check else "no"],
        ["when full", status.no_space_policy],
        ["discard", status.discard],
        ["transaction id", str(status.transaction_id)],
        ["metadata snapshot", held],
        ["metadata low water", size(status.metadata_low_water_blocks * METADATA_BLOCK)],
    ]


def _use_rows(report: "PoolReport", size: Callable[[int], str]) -> list[list[str]]:
    data_free = report.data_size - report.data_used
    usable = report.metadata_size - report.metadata_reserve
    return [
        ["block size", size(report.block_size)],
        ["data", _use(report.data_used, report.data_size, data_free, size)],
        ["data writable", f"{size(report.data_available)}, limited by the free space of pool and host"],
        ["metadata", _use(report.metadata_used, usable, report.metadata_available, size)],
        ["metadata reserve", f"{size(report.metadata_reserve)}, kept by the kernel for its commits"],
    ]


def _use(used: int, total: int, free: int, size: Callable[[int], str]) -> str:
    return f"{size(used)} used of {size(total)} ({format_percent(used, total)}), {size(free)} free"


def _length(path: str, allocated: int | None) -> int | None:
    """Return the length in bytes of a sparse file, None for a device or a missing file."""
    if allocated is None:
        return None
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def _kernel_line(status: "PoolStatus") -> dict[str, Any]:
    return {
        "transaction_id": status.transaction_id,
        "metadata_used_blocks": status.metadata_used_blocks,
        "metadata_total_blocks": status.metadata_total_blocks,
        "data_used_blocks": status.data_used_blocks,
        "data_total_blocks": status.data_total_blocks,
        "held_metadata_root": status.held_metadata_root,
        "mode": status.mode,
        "discard": status.discard,
        "no_space_policy": status.no_space_policy,
        "needs_check": status.needs_check,
        "metadata_low_water_blocks": status.metadata_low_water_blocks,
    }
