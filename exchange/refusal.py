"""Why something was not done, as a value: the one shape every door gives its refusals.

A refusal says that a call or a message was not entered at all. What the engine says about an order
that was entered is no refusal but an execution with a reason. Gives status codes by number, so
that pure rooms need no gRPC; `exchange.service` turns a refusal into the end of a call.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

DOMAIN: Final = "holdfast"
"""Domain of every google.rpc.ErrorInfo of ours."""
VALUE_CHARACTERS: Final = 100
"""A refusal quotes so much of the value given: enough to recognise it, too little to flood."""


class Code(IntEnum):
    """The gRPC status codes that refusals use."""

    INVALID_ARGUMENT = 3
    """Wrong in itself: never try the same again."""
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    """Full: try again later."""
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    """Beyond what is still, or already, there."""
    INTERNAL = 13
    UNAVAILABLE = 14
    """Not now: try again, perhaps elsewhere."""
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused and what would have been right."""

    code: Code
    reason: str
    """One word for programs, such as PRICE_OFF_GRID."""
    message: str
    """One sentence for people."""
    field: str = ""
    value: str = ""
    limit: str = ""

    @classmethod
    def of_field(cls, reason: str, field: str, value: object, limit: str) -> Self:
        """Return the refusal of a value that is wrong in itself."""
        text = str(value)
        if len(text) > VALUE_CHARACTERS:
            text = text[:VALUE_CHARACTERS] + "…"
        return cls(
            Code.INVALID_ARGUMENT,
            reason,
            f"{field} is {text!r}; it must be {limit}",
            field,
            text,
            limit,
        )


class Refused(Exception):
    """Ends a call with a refusal; translated to status and ErrorInfo in one place."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
