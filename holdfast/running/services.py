"""The wires to ledgerd and riskd: every question asked again while nobody answers."""

from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.identity import open_channel
from exchange.v1 import ledger_pb2_grpc, risk_pb2_grpc
from holdfast.errors import TryAgain, of_rpc_error
from holdfast.retry import Attempts, Retry
from holdfast.running.plan import MoneyPlan

PATIENT: Final = Retry(patience_s=60.0, attempt_s=10.0)
ONCE: Final = Retry(patience_s=5.0, attempt_s=5.0)

_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
)


async def asked(call: Any, request: Any, retry: Retry = PATIENT) -> Any:
    """Return the answer to a call that may be repeated. Raises CallFailed."""
    attempts = Attempts(retry)
    while True:
        try:
            return await call(request, timeout=attempts.attempt_s())
        except grpc.RpcError as error:
            failed = of_rpc_error(error)
            if not isinstance(failed, TryAgain) or attempts.spent():
                raise failed from error
        await attempts.pause()


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first thing that went wrong, for people: the others followed from it."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


class Services:
    """Channels to the books and to the risk service. Use as an async context manager."""

    def __init__(self, plan: MoneyPlan) -> None:
        self._ledger = open_channel(plan.ledger, options=_OPTIONS)
        self._risk = open_channel(plan.risk, options=_OPTIONS)
        self.books: Any = ledger_pb2_grpc.LedgerServiceStub(self._ledger)
        self.risk: Any = risk_pb2_grpc.RiskServiceStub(self._risk)
        self._health = {
            "ledgerd": (health_pb2_grpc.HealthStub(self._ledger), "ledger"),
            "riskd": (health_pb2_grpc.HealthStub(self._risk), "exchange.v1.RiskService"),
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._ledger.close()
        await self._risk.close()

    async def missing(self) -> str:
        """Return which of the two does not serve yet, and why; empty if both do."""
        for name, (stub, service) in self._health.items():
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = await stub.Check(request, timeout=1)
            except grpc.RpcError as error:
                return f"{name} does not answer: {of_rpc_error(error)}"
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                return f"{name} does not serve yet"
        return ""
