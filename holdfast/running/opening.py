"""Waiting for an exchange that was just started, and what stands in the way if it stays shut."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from exchange.v1 import enums_pb2, pair_admin_pb2
from holdfast.client import AsyncClient
from holdfast.errors import TryAgain
from holdfast.retry import Retry
from holdfast.running.services import Services
from holdfast.running.supervisor import StartFailed, Supervisor

START_S: Final = 120
"""A journal of many commands takes its time to replay; a process that dies is noticed earlier."""
LOOK_S: Final = 0.05
_ONCE: Final = Retry(patience_s=0.5, attempt_s=0.5)


async def until_open(
    supervisor: Supervisor, client: AsyncClient
) -> pair_admin_pb2.GetStatusResponse:
    """Wait for order entry, and for market data if there is a gateway; return the status.

    Raises StartFailed with the last words of who dies, or with what is missing.
    """
    found: list[pair_admin_pb2.GetStatusResponse] = []

    async def missing() -> str:
        try:
            status = await client.status(_ONCE)
            if status.engine_state != enums_pb2.ENGINE_STATE_READY:
                return f"the engine is {enums_pb2.EngineState.Name(status.engine_state)}"
            if supervisor.plan.market_data_port:
                await client.ticker(_ONCE)
        except TryAgain as error:
            return str(error)
        found.append(status)
        return ""

    await _until_nothing_is_missing(supervisor, client.pair, missing)
    return found[0]


async def until_serving(supervisor: Supervisor, services: Services) -> None:
    """Wait for the books and the risk service. Raises StartFailed."""
    await _until_nothing_is_missing(supervisor, "the money plane", services.missing)


async def _until_nothing_is_missing(
    supervisor: Supervisor, what: str, missing: Callable[[], Awaitable[str]]
) -> None:
    clock = asyncio.get_running_loop().time
    ends = clock() + START_S
    sentence = "nobody was asked"
    while clock() < ends:
        supervisor.check_hopeless()
        sentence = await missing()
        if not sentence:
            return
        await asyncio.sleep(LOOK_S)
    raise StartFailed(f"{what} did not open within {START_S} s: {sentence}")
