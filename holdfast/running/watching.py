"""Keeps a screen up to date: asks the exchange, and takes what it streams."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from exchange.v1 import ledger_pb2, risk_pb2
from holdfast.client import AsyncClient
from holdfast.errors import CallFailed
from holdfast.retry import Retry
from holdfast.running.child import last_words
from holdfast.running.demonstration import MAKER, VISITOR, owner_kind
from holdfast.running.live_view import ProcessLine, Screen
from holdfast.running.money_view import MoneyScreen, Settled
from holdfast.running.pair_view import LEVELS_ASKED, PairScreen
from holdfast.running.plan import Plan
from holdfast.running.services import ONCE, Services, asked
from holdfast.running.supervisor import Supervisor

FRAMES_PER_SECOND: Final = 4
STATUS_S: Final = 0.5
MONEY_S: Final = 1.0
TRIAL_S: Final = 10.0
"""A trial balance sums every posting there is."""
TRIAL_SHARE: Final = 50
"""So many times its own duration lies between two trial balances, too."""
OWNERS: Final = {f"visitor {VISITOR}": VISITOR, f"maker {MAKER}": MAKER}
_LOOK: Final = Retry(patience_s=3_600.0, attempt_s=1.0)
_ONCE: Final = Retry(patience_s=0.5, attempt_s=0.5)


class Watcher:
    """Watches one exchange for a screen until cancelled."""

    def __init__(self, plan: Plan, screen: Screen, services: Services, report: Path) -> None:
        self._plan = plan
        self._screen = screen
        self._services = services
        self._report = report

    async def run(self) -> None:
        """Watch until cancelled."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for one in self._plan.pairs:
                client = AsyncClient(
                    one.pair, target=one.target, market_data=self._plan.market_data, retry=_LOOK
                )
                await stack.enter_async_context(client)
                screen = self._screen.of(one.pair)
                tasks.create_task(_watch_book(client, screen))
                tasks.create_task(_watch_trades(client, screen))
                tasks.create_task(_watch_ticker(client, screen))
                tasks.create_task(_watch_status(client, screen))
            money, services = self._screen.money, self._services
            tasks.create_task(_now_and_then(STATUS_S, lambda: _settlements(services, money)))
            tasks.create_task(_now_and_then(MONEY_S, lambda: _balances(services, money)))
            tasks.create_task(_now_and_then(MONEY_S, lambda: _alarms(services, money)))
            tasks.create_task(_now_and_then(TRIAL_S, lambda: _trial(services, money), TRIAL_SHARE))

    def look(self, supervisor: Supervisor) -> None:
        """Take what the supervisor and the flow say."""
        now_ns = time.monotonic_ns()
        self._screen.processes = [
            ProcessLine(
                child.name,
                child.pair,
                child.pid,
                child.state,
                child.uptime_s(now_ns),
                child.restart_count,
            )
            for child in supervisor.children
        ]
        with contextlib.suppress(FileNotFoundError, ValueError):
            for pair, report in json.loads(self._report.read_text()).items():
                self._screen.of(pair).flow = report
        ill = [child for child in supervisor.children if child.deaths_in_a_row > 1]
        self._screen.footer = "\n".join(
            f"{child.title} does not stay up: {last_words(child.log)}" for child in ill
        )


async def _now_and_then(
    pause_s: float, work: Callable[[], Awaitable[None]], share: int = 0
) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        with contextlib.suppress(CallFailed):
            await work()
        await asyncio.sleep(max(pause_s, share * (clock() - began)))


# A pair.


async def _watch_book(client: AsyncClient, screen: PairScreen) -> None:
    async for book in client.watch_book(LEVELS_ASKED, 1_000 // FRAMES_PER_SECOND):
        screen.book = book


async def _watch_trades(client: AsyncClient, screen: PairScreen) -> None:
    async for trade in client.watch_trades():
        screen.trades.append(trade)


async def _watch_ticker(client: AsyncClient, screen: PairScreen) -> None:
    async for ticker in client.watch_ticker(500):
        screen.see_ticker(time.monotonic_ns(), ticker)


async def _watch_status(client: AsyncClient, screen: PairScreen) -> None:
    while True:
        try:
            status = await client.status(_ONCE)
            screen.see_status(time.monotonic_ns(), status)
        except CallFailed:
            screen.status = None
        await asyncio.sleep(STATUS_S)


# Money.


async def _settlements(services: Services, money: MoneyScreen) -> None:
    try:
        answer = await asked(
            services.books.ListSettlements, ledger_pb2.ListSettlementsRequest(), _ONCE
        )
    except CallFailed:
        for known in money.settled.values():
            known.settlement = None
        raise
    for one in answer.settlements:
        money.settled.setdefault(one.pair, Settled()).see(time.time_ns(), one)


async def _balances(services: Services, money: MoneyScreen) -> None:
    for shown, owner in OWNERS.items():
        request = ledger_pb2.ListBalancesRequest(owner_kind=owner_kind(owner), owner_id=owner)
        answer = await asked(services.books.ListBalances, request, ONCE)
        money.owners[shown] = list(answer.balances)


async def _alarms(services: Services, money: MoneyScreen) -> None:
    try:
        request = risk_pb2.GetRiskStatusRequest()
        money.risk = await asked(services.risk.GetRiskStatus, request, _ONCE)
    except CallFailed:
        money.risk = None
        raise


async def _trial(services: Services, money: MoneyScreen) -> None:
    request = ledger_pb2.GetTrialBalanceRequest()
    try:
        money.trial = await asked(services.books.GetTrialBalance, request, ONCE)
    except CallFailed:
        # An old proof looks like a present one.
        money.trial = None
        raise
