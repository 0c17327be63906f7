"""All errors, grouped by who must act, with the status that every front end reports for each error.

A message names the thing and says what happened to it; the hint says what to do next. Front ends translate
`DmthinError.status` and define no status of their own.
"""

from enum import Enum
from typing import ClassVar


class Status(Enum):
    """The status of an error in each front end: exit status of a process, name of a gRPC status, HTTP status."""

    FAILED = (1, "INTERNAL", 500)
    INVALID = (2, "INVALID_ARGUMENT", 400)
    NOT_FOUND = (3, "NOT_FOUND", 404)
    EXISTS = (4, "ALREADY_EXISTS", 409)
    IN_USE = (5, "FAILED_PRECONDITION", 409)
    NO_DATA_SPACE = (6, "RESOURCE_EXHAUSTED", 507)
    NO_METADATA_SPACE = (7, "RESOURCE_EXHAUSTED", 507)
    NOT_PERMITTED = (8, "PERMISSION_DENIED", 403)
    UNAVAILABLE = (9, "UNAVAILABLE", 503)
    NEEDS_REPAIR = (10, "DATA_LOSS", 503)
    TIME_LIMIT = (11, "DEADLINE_EXCEEDED", 504)
    PARTLY_DONE = (12, "ABORTED", 500)
    OUTPUT_LOST = (13, "INTERNAL", 500)

    def __init__(self, exit_code: int, grpc: str, http: int) -> None:
        self.exit_code = exit_code
        self.grpc = grpc
        self.http = http


class DmthinError(Exception):
    """Base of every error that dmthin raises on purpose; `str()` is one line, the hint included."""

    status: ClassVar[Status] = Status.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class UserError(DmthinError):
    """The request cannot be carried out; another one can."""


class InvalidValue(UserError):
    """An invalid option, size or name."""

    status = Status.INVALID


class NotFound(UserError):
    """There is no such volume, file or store."""

    status = Status.NOT_FOUND


class AlreadyExists(UserError):
    """The name or place is taken, or belongs to another store."""

    status = Status.EXISTS


class InUse(UserError):
    """The volume is mounted, open, has children, or is an engine's."""

    status = Status.IN_USE


class OperatorError(DmthinError):
    """The machine or the pool needs an administrator."""


class NoDataSpace(OperatorError):
    """The pool, the volume or the host file system is full."""

    status = Status.NO_DATA_SPACE


class NoMetadataSpace(OperatorError):
    """The pool's metadata device is full."""

    status = Status.NO_METADATA_SPACE


class NotPermitted(OperatorError):
    """The process lacks a right, commonly CAP_SYS_ADMIN."""

    status = Status.NOT_PERMITTED


class Unavailable(OperatorError):
    """A kernel facility, a program, a pool or a daemon is missing."""

    status = Status.UNAVAILABLE


class NeedsRepair(OperatorError):
    """The pool is read-only or failed, or its metadata and the ledger disagree."""

    status = Status.NEEDS_REPAIR


class OutputLost(OperatorError):
    """The output of a command cannot be written. A change that the message names was made."""

    status = Status.OUTPUT_LOST


class ToolFailed(OperatorError):
    """An external program failed; the message has its own words."""


class KernelError(OperatorError):
    """The kernel refused a request for a reason that no other class stands for.

    `errno` is the kernel's number, 0 where a program that made the request has not passed it on.
    """

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class KernelInvalid(KernelError, InvalidValue):
    """EINVAL: a table, a name or a message that the kernel refuses."""


class RetryError(DmthinError):
    """The same request may succeed later."""


class TimeLimit(RetryError):
    """A program, a device or the holder of a lock took too long."""

    status = Status.TIME_LIMIT


class PartlyDone(RetryError):
    """Part of the change was made; the message names which."""

    status = Status.PARTLY_DONE
