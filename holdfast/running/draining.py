"""Waiting until the books have everything that the engines said, before anybody is stopped."""

import asyncio
from typing import Final

from exchange.v1 import ledger_pb2, pair_admin_pb2, risk_pb2
from holdfast.client import AsyncClient
from holdfast.errors import CallFailed
from holdfast.retry import Retry
from holdfast.running.plan import Plan
from holdfast.running.services import Services, asked

DRAIN_S: Final = 30
"""What is not settled by then is settled at the next start: nothing is lost either way."""
LOOK_S: Final = 0.05
QUIET_S: Final = 0.5
"""The logs have to stand still for so long: an order that waited for money may be entered late."""
_ONCE: Final = Retry(patience_s=2.0, attempt_s=2.0)


async def drain(plan: Plan, services: Services) -> str:
    """Return once every move of funds is done and settled; or, in a sentence, what is not."""
    clock = asyncio.get_running_loop().time
    ends = clock() + DRAIN_S
    quiet_from, seen = clock(), dict[str, int]()
    while True:
        try:
            left, committed = await _left(plan, services)
        except CallFailed as error:
            left, committed = str(error), {}
        if left or committed != seen:
            quiet_from, seen = clock(), committed
        if clock() >= ends or (not left and clock() - quiet_from >= QUIET_S):
            return left
        await asyncio.sleep(LOOK_S)


async def _left(plan: Plan, services: Services) -> tuple[str, dict[str, int]]:
    """Return what is not settled, in a sentence, and how long each pair's log is."""
    # Moves first: one that ends is told by the log, whose length is looked at afterwards.
    risk = await asked(services.risk.GetRiskStatus, risk_pb2.GetRiskStatusRequest(), _ONCE)
    for pair in risk.pairs:
        if pair.open_move_count:
            return f"{pair.open_move_count} moves of funds are under way in {pair.pair}", {}
    committed = {one.pair: await _committed(one.pair, one.target) for one in plan.pairs}
    request = ledger_pb2.ListSettlementsRequest()
    answer = await asked(services.books.ListSettlements, request, _ONCE)
    for settled in answer.settlements:
        behind = committed.get(settled.pair, 0) - settled.cursor
        if behind > 0:
            sentence = f"{behind} executions of {settled.pair} are not settled {settled.sentence}"
            return sentence, committed
    return "", committed


async def _committed(pair: str, target: str) -> int:
    async with AsyncClient(pair, target=target, retry=_ONCE) as client:
        status: pair_admin_pb2.GetStatusResponse = await client.status()
        return int(status.committed_number)
