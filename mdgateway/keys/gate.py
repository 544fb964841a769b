"""The gate before the gRPC calls: whose key, how often, how many streams, how much of everything.

It decides before a call does anything, by the same tiers and with the same ``Admission`` as the
other doors.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context
from mdgateway.keys.admission import Admission, Visitor, grpc_credentials
from mdgateway.keys.tiers import TIERS

STREAMS: Final = "streams"
MOST_LEVELS: Final = max(tier.level_limit for tier in TIERS.values())
"""What no tier has is wrong by itself, whoever asks."""
_FULL: Final = -1

Streamed = Callable[[Any, Context], AsyncIterator[bytes]]


class GrpcGate:
    """Lets calls in."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def admit(self, context: Context) -> Visitor:
        """Return who calls, after counting the call; raises Refused."""
        metadata, trusted = context.invocation_metadata() or (), self._admission.trusted_proxies
        address, secret = grpc_credentials(metadata, context.peer(), trusted)
        return self._admission.admit(address, secret, time.monotonic_ns(), time.time_ns())

    def fit(self, visitor: Visitor, channel: str, request: Any) -> None:
        """Hold a request to the caller's tier; raises Refused.

        An interval that was not named becomes the shortest one the tier has.
        """
        tier = visitor.tier
        if channel not in tier.channels:
            raise _too_low("channel", channel, f"one of {', '.join(tier.channels)}", tier.name)
        levels = getattr(request, "level_count", 0)
        if levels > MOST_LEVELS:
            limit = f"at most {MOST_LEVELS}"
            raise Refused(
                Refusal.of_field("LEVEL_COUNT_OUT_OF_RANGE", "level_count", levels, limit)
            )
        if (levels == _FULL and not tier.full_depth) or levels > tier.level_limit:
            raise _too_low("level_count", levels, f"at most {tier.level_limit}", tier.name)
        if hasattr(request, "interval_ms"):
            asked, least = request.interval_ms, tier.shortest_interval_ms
            if 0 < asked < least:
                raise _too_low("interval_ms", asked, f"at least {least}", tier.name)
            request.interval_ms = asked or least

    async def guarded(
        self, channel: str, parsed: Any, context: Context, behaviour: Streamed
    ) -> AsyncGenerator[bytes, None]:
        """Yield a stream's messages as long as the caller's key holds."""
        visitor = self.admit(context)
        self.fit(visitor, channel, parsed)
        self._admission.enter(visitor, STREAMS)
        try:
            async for message in behaviour(parsed.SerializeToString(), context):
                self._end_with_its_key(visitor)
                yield message
        finally:
            self._admission.leave(visitor, STREAMS)

    def _end_with_its_key(self, visitor: Visitor) -> None:
        key = visitor.key
        if key is not None and self._admission.keyring.ended(key, time.time_ns()):
            message = f"{visitor.holder} expired or was revoked"
            raise Refused(Refusal(Code.UNAUTHENTICATED, "KEY_ENDED", message))


def _too_low(field: str, value: object, limit: str, tier: str) -> Refused:
    message = f"{field} is {value!r}; it must be {limit} for the tier {tier}"
    return Refused(
        Refusal(Code.PERMISSION_DENIED, "TIER_TOO_LOW", message, field, str(value), limit)
    )
