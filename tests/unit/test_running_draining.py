"""Draining, against an exchange that says step by step how far it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from exchange.v1 import (
    enums_pb2,
    ledger_pb2,
    ledger_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from holdfast.running import draining
from holdfast.running.draining import drain
from holdfast.running.plan import MoneyPlan, PairPlan, Plan
from holdfast.running.services import Services

PAIRS = ("BTC-USDT", "ETH-USDT")
COMMITTED = 10


class Exchange(
    ledger_pb2_grpc.LedgerServiceServicer,
    risk_pb2_grpc.RiskServiceServicer,
    pair_admin_pb2_grpc.PairAdminServiceServicer,
):
    """Has so many moves under way, then settles an execution of the second pair a look.

    It closes its pairs when it was asked so often.
    """

    def __init__(self, moves: int, behind: int, asks: int = 1) -> None:
        self.moves, self.behind, self.asks = moves, behind, asks

    def close_doors(self) -> None:
        self.asks -= 1

    async def GetRiskStatus(self, request: Any, context: Any) -> Any:
        self.moves = max(0, self.moves - 1)
        pair = risk_pb2.PairRiskStatus(pair=PAIRS[0], open_move_count=self.moves)
        return risk_pb2.GetRiskStatusResponse(pairs=[pair])

    async def GetStatus(self, request: Any, context: Any) -> Any:
        state = enums_pb2.ENGINE_STATE_READY if self.asks > 0 else enums_pb2.ENGINE_STATE_CLOSED
        return pair_admin_pb2.GetStatusResponse(engine_state=state, committed_number=COMMITTED)

    async def ListSettlements(self, request: Any, context: Any) -> Any:
        self.behind = max(0, self.behind - 1)
        first = ledger_pb2.Settlement(pair=PAIRS[0], cursor=COMMITTED)
        second = ledger_pb2.Settlement(pair=PAIRS[1], cursor=COMMITTED - self.behind)
        return ledger_pb2.ListSettlementsResponse(settlements=[first, second])


@asynccontextmanager
async def served(exchange: Exchange) -> AsyncIterator[Plan]:
    server = aio.server()
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(exchange, server)
    risk_pb2_grpc.add_RiskServiceServicer_to_server(exchange, server)
    pair_admin_pb2_grpc.add_PairAdminServiceServicer_to_server(exchange, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pairs = tuple(PairPlan(pair, port) for pair in PAIRS)
    try:
        yield Plan(Path("nowhere"), pairs, money=MoneyPlan(port, port))
    finally:
        await server.stop(None)


def drained(exchange: Exchange) -> str:
    async def scenario() -> str:
        async with served(exchange) as plan:
            assert plan.money is not None
            async with Services(plan.money) as services:
                return await drain(plan, services, exchange.close_doors)

    return asyncio.run(scenario())


@pytest.mark.parametrize(("moves", "behind"), [(0, 0), (4, 0), (0, 4), (3, 3)])
def test_it_ends_when_no_move_is_open_and_every_pair_is_settled(moves: int, behind: int) -> None:
    exchange = Exchange(moves, behind)  # type: ignore[abstract]
    assert drained(exchange) == ""
    assert (exchange.moves, exchange.behind) == (0, 0)


def test_engines_are_asked_until_they_are_closed() -> None:
    exchange = Exchange(0, 0, asks=3)  # type: ignore[abstract]
    assert drained(exchange) == ""
    assert exchange.asks == 0


def test_a_pair_that_does_not_close_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "DRAIN_S", 0)
    exchange = Exchange(0, 0, asks=1 << 30)  # type: ignore[abstract]
    assert "orders of BTC-USDT may be on their way" in drained(exchange)


@pytest.mark.parametrize(
    ("moves", "behind", "sentence"),
    [
        (1 << 30, 0, "moves of funds are under way in BTC-USDT"),
        (0, 1 << 30, "executions of ETH-USDT are not settled"),
    ],
)
def test_what_does_not_end_is_named_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, moves: int, behind: int, sentence: str
) -> None:
    monkeypatch.setattr(draining, "DRAIN_S", 0)
    assert sentence in drained(Exchange(moves, behind, asks=0))  # type: ignore[abstract]
