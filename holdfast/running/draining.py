"""The last trade, then the books: what happens before anybody is stopped.

Every engine is asked to take no more orders. Once all of them say that none is on its way, moves
of funds are waited for, and then until the books have everything that the engines said.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from exchange.v1 import enums_pb2, ledger_pb2, pair_admin_pb2, risk_pb2
from holdfast.client import AsyncClient
from holdfast.errors import CallFailed
from holdfast.retry import Retry
from holdfast.running.plan import Plan
from holdfast.running.services import Services, asked

DRAIN_S: Final = 30
"""What is not settled by then is settled at the next start: nothing is lost either way."""
LOOK_S: Final = 0.05
_ONCE: Final = Retry(patience_s=2.0, attempt_s=2.0)


async def drain(plan: Plan, services: Services, close_doors: Callable[[], None]) -> str:
    """Return once every pair is closed and settled; or, in a sentence, what is not.

    `close_doors` asks all engines to take no more orders. It is called at every look until they
    are closed, since an engine that starts again is open.
    """
    clock = asyncio.get_running_loop().time
    ends = clock() + DRAIN_S
    while True:
        try:
            left = await _left(plan, services, close_doors)
        except CallFailed as error:
            left = str(error)
        if not left or clock() >= ends:
            return left
        await asyncio.sleep(LOOK_S)


async def _left(plan: Plan, services: Services, close_doors: Callable[[], None]) -> str:
    """Return what is not settled, in a sentence; empty: nothing."""
    # What is looked at first can only cause what is looked at later: orders, moves, executions.
    for one in plan.pairs:
        if (await _status(one.pair, one.target)).engine_state != enums_pb2.ENGINE_STATE_CLOSED:
            close_doors()
            return f"orders of {one.pair} may be on their way"
    risk = await asked(services.risk.GetRiskStatus, risk_pb2.GetRiskStatusRequest(), _ONCE)
    for pair in risk.pairs:
        if pair.open_move_count:
            return f"{pair.open_move_count} moves of funds are under way in {pair.pair}"
    committed = {
        one.pair: (await _status(one.pair, one.target)).committed_number for one in plan.pairs
    }
    request = ledger_pb2.ListSettlementsRequest()
    answer = await asked(services.books.ListSettlements, request, _ONCE)
    for settled in answer.settlements:
        behind = committed.get(settled.pair, 0) - settled.cursor
        if behind > 0:
            return f"{behind} executions of {settled.pair} are not settled {settled.sentence}"
    return ""


async def _status(pair: str, target: str) -> pair_admin_pb2.GetStatusResponse:
    async with AsyncClient(pair, target=target, retry=_ONCE) as client:
        return await client.status()
