"""How the doors of the books end a call: an answer, or a refusal with its reason.

What the books refuse ends a call with its reason; a database or custodian that is away is
UNAVAILABLE, and the next call finds it again; books older than they once were are
FAILED_PRECONDITION until somebody has looked.
"""

import functools
import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NoReturn, TypeVar
from uuid import UUID

import grpc

from exchange.identity import OURS, call_refusal
from exchange.refusal import Code, Refusal, Refused
from exchange.service import STATUS_DETAILS, status_of
from ledgerd.chart import OWNER_LIMIT
from ledgerd.custody.adapter import CustodyUnavailable
from ledgerd.database import GONE
from ledgerd.heads import BooksAreOlder
from ledgerd.ledger import BooksUnbalanced

Request = TypeVar("Request")
Response = TypeVar("Response")
Number = TypeVar("Number", bound=IntEnum)
Call = Callable[[Any, Request, grpc.ServicerContext], Response]

log = logging.getLogger(__name__)

_STATUS_OF: Final = {code.value[0]: code for code in grpc.StatusCode}
_GONE: Final = Refusal(
    Code.UNAVAILABLE,
    "DATABASE_UNAVAILABLE",
    "the database of the books does not answer; whatever was asked may have been done, repeat it"
    " with the same id",
)
_UNEXPECTED: Final = Refusal(
    Code.INTERNAL, "INTERNAL", "the server failed to handle the call; its log says why"
)


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    details = ((STATUS_DETAILS, status_of(refusal).SerializeToString()),)
    context.set_trailing_metadata(details)
    context.abort(_STATUS_OF[int(refusal.code)], refusal.message)
    raise AssertionError("abort returned")


class RoleCheck(grpc.ServerInterceptor):
    """Lets a call through if the role of its caller may make it; for servers with an identity."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a method of ours with the check before it, any other as it is."""
        handler, method = continuation(handler_call_details), str(handler_call_details.method)
        if handler is None or not method.startswith(OURS):
            return handler
        assert handler.unary_unary, f"{method} is of a kind that the books do not use"

        def checked(request: Any, context: grpc.ServicerContext) -> Any:
            refusal = call_refusal(method, context)
            if refusal is not None:
                _abort(context, refusal)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            checked, handler.request_deserializer, handler.response_serializer
        )


def answered(call: Call[Request, Response]) -> Call[Request, Response]:
    """Turn what a call raises into the end of the call."""

    @functools.wraps(call)
    def ended(self: Any, request: Request, context: grpc.ServicerContext) -> Response:
        try:
            self.refuse_if_older()
            return call(self, request, context)
        except Refused as refused:
            refusal = refused.refusal
        except GONE as error:
            log.warning("%s: %s", call.__name__, error)
            refusal = _GONE
        except CustodyUnavailable as error:
            refusal = Refusal(Code.UNAVAILABLE, "CUSTODY_UNAVAILABLE", str(error))
        except BooksAreOlder as error:
            refusal = Refusal(Code.FAILED_PRECONDITION, "BOOKS_OLDER", str(error))
        except BooksUnbalanced as error:
            refusal = Refusal(Code.FAILED_PRECONDITION, "BOOKS_UNBALANCED", str(error))
        except Exception:
            log.exception("%s failed", call.__name__)
            refusal = _UNEXPECTED
        _abort(context, refusal)

    return ended


def identity(field: str, value: bytes) -> UUID:
    """Return an id that a caller gave. Raises Refused."""
    if len(value) != 16:
        raise Refused(Refusal.of_field("ID_INVALID", field, value.hex(), "16 bytes"))
    return UUID(bytes=value)


def owner_number(owner_id: int) -> int:
    """Return an owner's number that a caller gave. Raises Refused for one that nobody can have."""
    if not 1 <= owner_id < OWNER_LIMIT:
        limit = f"from 1 to {OWNER_LIMIT - 1}"
        raise Refused(Refusal.of_field("ACCOUNT_UNKNOWN", "owner_id", owner_id, limit))
    return owner_id


def enumerated(kind: type[Number], field: str, value: int) -> Number:
    """Return a number that a caller gave as what it stands for. Raises Refused."""
    try:
        return kind(value)
    except ValueError:
        raise Refused(
            Refusal.of_field("ENUM_INVALID", field, value, f"a {kind.__name__} that exists")
        ) from None
