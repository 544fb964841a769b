"""Asking riskd to count a withdrawal against the daily limits, and to count it no longer."""

from typing import Any, Final, Protocol
from uuid import UUID

import grpc

from exchange.identity import open_blocking_channel
from exchange.refusal import Code, Refusal
from exchange.v1 import risk_pb2, risk_pb2_grpc
from ledgerd.custody.adapter import Unanswered

CALL_S: Final = 3
_OPTIONS: Final = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_PREFIX: Final = "RISK_REASON_"


class RiskUnavailable(Unanswered):
    """riskd gave no answer; whether it counted is not known."""


class Limiter(Protocol):
    """Whoever counts withdrawals against limits; both methods raise RiskUnavailable."""

    def reserve(self, made: UUID, account: int, asset: str, amount_units: int) -> Refusal | None:
        """Count a withdrawal, once for each id; return why not if it is too much."""

    def release(self, made: UUID) -> None:
        """Count it no longer; nothing happens if it did not count."""


class RiskLink:
    """riskd over gRPC."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = open_blocking_channel(target, options=_OPTIONS)
        self._stub: Any = risk_pb2_grpc.RiskServiceStub(self._channel)

    def reserve(self, made: UUID, account: int, asset: str, amount_units: int) -> Refusal | None:
        """Count a withdrawal, once for each id; return why not if it is too much."""
        request = risk_pb2.ReserveWithdrawalRequest(
            id=made.bytes, account=account, asset=asset, amount_units=amount_units
        )
        answer = self._asked(self._stub.ReserveWithdrawal, request)
        if answer.reason == risk_pb2.RISK_REASON_UNSPECIFIED:
            return None
        reason = risk_pb2.RiskReason.Name(answer.reason).removeprefix(_PREFIX)
        return Refusal(Code.FAILED_PRECONDITION, reason, answer.message)

    def release(self, made: UUID) -> None:
        """Count it no longer; nothing happens if it did not count."""
        request = risk_pb2.ReleaseWithdrawalRequest(id=made.bytes)
        self._asked(self._stub.ReleaseWithdrawal, request)

    def _asked(self, call: Any, request: Any) -> Any:
        try:
            return call(request, timeout=CALL_S)
        except grpc.RpcError as error:
            said = f"{error.code().name}: {error.details()}"
            raise RiskUnavailable(f"riskd at {self.target} gave no answer: {said}") from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
