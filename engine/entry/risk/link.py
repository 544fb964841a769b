"""The wire to the risk service: one method a question, and an answer in every case.

Nobody waits long for a service that is away: a call that fails, or is not answered in time, keeps
all others from trying for a second (`engine.entry.risk.breaker`).
"""

import logging
import time
from typing import Any, Final, NamedTuple, cast

import grpc
from grpc import aio

from engine.entry.risk.breaker import Breaker
from engine.entry.risk.needs import Need
from exchange.identity import open_channel
from exchange.v1 import risk_pb2, risk_pb2_grpc

LIMITS_S: Final = 1
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)
_BY_AMOUNT: Final = frozenset(
    {
        risk_pb2.RISK_REASON_AMOUNT_OUT_OF_RANGE,
        risk_pb2.RISK_REASON_EXPOSURE_LIMIT,
        risk_pb2.RISK_REASON_TOTAL_EXPOSURE_LIMIT,
        risk_pb2.RISK_REASON_INSUFFICIENT_FUNDS,
        risk_pb2.RISK_REASON_BALANCE_OVERFLOW,
    }
)
"""Refusals that a smaller amount may not meet."""

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """What became of a question for money."""

    granted: bool
    sentence: str = ""
    """Why not, for people."""
    by_amount: bool = False
    """True if less might have been given."""


AWAY: Final = Verdict(False, "the risk service does not answer")


class RiskLink:
    """The risk service, as one order-entry process asks it."""

    def __init__(self, target: str, pair: str, patience_ms: int) -> None:
        self.target = target
        self.patience_ms = patience_ms
        """How long the service may take to have money here; its answer half as long again."""
        self.pair = pair
        self._breaker = Breaker()
        self._channel = open_channel(target, options=_OPTIONS)
        self._stub: Any = risk_pb2_grpc.RiskServiceStub(self._channel)

    async def close(self) -> None:
        """End every call at once and close the wire."""
        await self._channel.close()

    async def allotment(self, account: int, need: Need, number: int) -> Verdict:
        """Ask for money to be free here; `number` is the execution that told it is not."""
        request = risk_pb2.RequestAllotmentRequest(
            account=account,
            pair=self.pair,
            asset=int(need.asset),  # type: ignore[arg-type]
            amount_units=need.units,
            execution_number=number,
            patience_ms=self.patience_ms,
        )
        timeout_s = self.patience_ms * 3 / 2_000
        answer = await self._asked(self._stub.RequestAllotment, request, timeout_s)
        if answer is None:
            return AWAY
        if answer.reason == risk_pb2.RISK_REASON_UNSPECIFIED:
            return Verdict(True)
        name = risk_pb2.RiskReason.Name(answer.reason).removeprefix("RISK_REASON_")
        sentence = f"the risk service gives no more: {name}, {answer.message}"
        return Verdict(False, sentence, answer.reason in _BY_AMOUNT)

    async def limits(self, account: int) -> Any:
        """Return the GetEffectiveLimitsResponse of an account here; None if there is no answer."""
        request = risk_pb2.GetEffectiveLimitsRequest(account=account, pair=self.pair)
        return await self._asked(self._stub.GetEffectiveLimits, request, LIMITS_S)

    async def _asked(self, call: Any, request: Any, timeout_s: float) -> Any:
        if not self._breaker.allows(time.monotonic_ns()):
            return None
        answer, alive = None, False
        try:
            answer = await call(request, timeout=timeout_s)
            alive = True
        except grpc.RpcError as error:
            failure = cast(aio.AioRpcError, error)
            alive = failure.code() == grpc.StatusCode.INVALID_ARGUMENT
            log.warning("%s: %s: %s", self.target, failure.code().name, failure.details())
        finally:
            # Also when the asker was cancelled: it may have been the one that tried for all.
            if alive:
                self._breaker.succeeded()
            else:
                self._breaker.failed(time.monotonic_ns())
        return answer
