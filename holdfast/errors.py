"""What can go wrong for a caller: one root, one class per thing the caller can do about it.

A call that failed raises `CallFailed` or a class below it, with the server's reason, field, value
and limit. An order that the engine refused is no failed call: it is a report with a reason, which
`accepted` turns into `OrderRejected` for those who prefer that.
"""

from typing import Final

import grpc

from exchange.enums import ExecutionKind, Reason
from exchange.refusal import DOMAIN
from exchange.service import refusal_in
from exchange.v1 import execution_pb2


class HoldfastError(Exception):
    """Root of everything this package raises on purpose."""


class CallFailed(HoldfastError):
    """A call, or one message of a stream, was refused or lost.

    `code` is the gRPC status, `reason` one word for programs (empty if the server gave none),
    `field`, `value` and `limit` say what was wrong with what.
    """

    def __init__(
        self,
        code: int,
        message: str,
        reason: str = "",
        *,
        field: str = "",
        value: str = "",
        limit: str = "",
    ) -> None:
        super().__init__(f"{reason}: {message}" if reason else message)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.value = value
        self.limit = limit


class InvalidRequest(CallFailed):
    """The request is wrong in itself: the same again will fail again."""


class NotFound(CallFailed):
    """What was asked for is not there."""


class Unauthenticated(CallFailed):
    """The caller did not say, or may not be, who it is."""


class NotPermitted(CallFailed):
    """The caller is known and may not do this: its role, its tier or its name does not reach."""


class OutOfRange(CallFailed):
    """A position that is no longer, or not yet, there."""


class TryAgain(CallFailed):
    """Not now: the same may work in a moment, with the same client order id."""


class Unavailable(TryAgain):
    """Nobody answered. Whether the command was executed is not known."""


class Full(TryAgain):
    """Too much is under way; the command was not entered."""


class OutcomeUnknown(TryAgain):
    """No answer in time. The command may still be executed."""


class OrderRejected(HoldfastError):
    """The engine refused a command; nothing changed."""

    def __init__(self, report: execution_pb2.CommandReport) -> None:
        self.reason = Reason(report.reason)
        self.report = report
        super().__init__(f"{self.reason.name}: {report.message}")


_BY_CODE: Final[dict[int, type[CallFailed]]] = {
    3: InvalidRequest,
    4: OutcomeUnknown,
    5: NotFound,
    7: NotPermitted,
    8: Full,
    9: InvalidRequest,
    11: OutOfRange,
    14: Unavailable,
    16: Unauthenticated,
}


def of_rpc_error(error: grpc.RpcError) -> CallFailed:
    """Return what a failed call means, with the reason its ErrorInfo gives."""
    status = error.code()
    code = int(status.value[0]) if status is not None else 2
    message = error.details() or ""
    kind = _BY_CODE.get(code, CallFailed)
    info = refusal_in(error)
    if info is None or info.domain != DOMAIN:
        return kind(code, message or f"gRPC status {code}")
    given = {name: info.metadata.get(name, "") for name in ("field", "value", "limit")}
    return kind(code, message, info.reason, **given)


def of_refusal(refusal: execution_pb2.Refusal) -> CallFailed:
    """Return what a refusal inside a stream means: the same as at the end of a call."""
    kind = _BY_CODE.get(refusal.code, CallFailed)
    return kind(
        refusal.code,
        refusal.message,
        refusal.reason,
        field=refusal.field,
        value=refusal.value,
        limit=refusal.limit,
    )


def accepted(report: execution_pb2.CommandReport) -> execution_pb2.CommandReport:
    """Return the report; raises OrderRejected if the engine refused the command."""
    if int(report.kind) == ExecutionKind.REJECTED:
        raise OrderRejected(report)
    return report
