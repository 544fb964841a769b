"""Waiting for a pair that was just started, with what stands in the way if it does not open."""

import asyncio
from typing import Final

from exchange.v1 import enums_pb2, pair_admin_pb2
from holdfast.client import AsyncClient
from holdfast.errors import TryAgain
from holdfast.retry import Retry
from holdfast.supervisor import StartFailed, Supervisor

START_S: Final = 120
"""A journal of many commands takes its time to replay; a process that dies is noticed earlier."""
_ONCE: Final = Retry(patience_s=0.5, attempt_s=0.5)


async def until_open(
    supervisor: Supervisor, client: AsyncClient
) -> pair_admin_pb2.GetStatusResponse:
    """Wait for order entry, and for market data if there is a gateway; return the status.

    Raises StartFailed with the last words of who dies, or with what is missing.
    """
    clock = asyncio.get_running_loop().time
    pair, ends = supervisor.plan.pair, clock() + START_S
    missing = ""
    while clock() < ends:
        supervisor.check_hopeless()
        try:
            status = await client.status(_ONCE)
            if status.engine_state == enums_pb2.ENGINE_STATE_READY:
                if supervisor.plan.market_data_port:
                    await client.ticker(_ONCE)
                return status
            missing = f"the engine is {enums_pb2.EngineState.Name(status.engine_state)}"
        except TryAgain as error:
            missing = str(error)
        await asyncio.sleep(0.05)
    raise StartFailed(f"{pair} did not open within {START_S} s: {missing}")
