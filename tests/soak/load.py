"""Traders who write down what was acknowledged, and an owner whose money comes and goes."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from engine.durability.execution_reader import confirm
from exchange.config import RunFolder, load_instrument
from exchange.enums import ExecutionKind, Side
from exchange.units import lots_to_quantity
from holdfast.client import AsyncClient
from holdfast.errors import InvalidRequest
from holdfast.money.client import AsyncMoneyClient
from holdfast.retry import Retry
from tests.integration.run_process import RunProcess
from tests.soak.outcome import Outcome

WITNESSES: Final = (201, 202)
OWNER: Final = 150
APPROVERS: Final = ("ann", "bob", "cleo", "dora")
OUTSIDE: Final = "outside150"
BROUGHT: Final = {"BTC": "50", "ETH": "1000", "USDT": "5000000"}
MOVED: Final = {"BTC": "0.5", "ETH": "10", "USDT": "40000"}
"""What the owner deposits, moves or withdraws at a time, at most a tenth more."""
PATIENT: Final = Retry(patience_s=300.0, attempt_s=5.0)
WATCH: Final = Retry(patience_s=300.0, first_pause_s=0.2, longest_pause_s=1.0)
PAUSE_S: Final = 0.05
RESTING_LIMIT: Final = 40
FINISH_S: Final = 180
_ACKNOWLEDGED: Final = (ExecutionKind.ACCEPTED, ExecutionKind.REPLAYED)
UNDER_WAY: Final = ("deposit seen", "withdrawal approved", "withdrawal sending", "withdrawal sent")


class Load:
    """What goes on while processes are killed. Use as an async context manager."""

    def __init__(self, run: RunProcess, seed: int, outcome: Outcome) -> None:
        self._run = run
        self._outcome = outcome
        self._seed = seed
        self._chance = random.Random(f"owner {seed}")
        self._counts: Counter[str] = Counter()
        self._stopping = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._owner = await self._stack.enter_async_context(self._money(OWNER))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def _money(self, account: int) -> AsyncMoneyClient:
        return AsyncMoneyClient(
            account, ledger=self._run.ledger_target, risk=self._run.risk_target, retry=PATIENT
        )

    async def begin(self) -> None:
        """Keep the logs from being pruned, fund everybody, list an address to withdraw to."""
        for pair in self._run.targets:
            confirm(RunFolder(self._run.run, pair).executions, "soak", 0)
        usable_ns = 0
        for asset in BROUGHT:
            listed = await self._owner.add_address(asset, OUTSIDE)
            usable_ns = max(usable_ns, listed.usable_ns)
        async with asyncio.TaskGroup() as tasks:
            for account in (*WITNESSES, OWNER):
                tasks.create_task(self._bring(account))
        await asyncio.sleep(max(0, usable_ns - time.time_ns()) / 1e9)

    async def _bring(self, account: int) -> None:
        async with self._money(account) as money:
            for asset, amount in BROUGHT.items():
                await self._deposit(money, asset, amount)
                if account != OWNER:
                    await money.transfer(asset, amount)

    async def work(self) -> None:
        """Trade and move money until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._move_money())
            for pair in self._run.targets:
                for account in WITNESSES:
                    tasks.create_task(self._trade(pair, account))

    def stop(self) -> None:
        """Let everybody finish what they are at."""
        self._stopping.set()

    # Orders.

    async def _trade(self, pair: str, account: int) -> None:
        chance = random.Random(f"{self._seed} {pair} {account}")
        instrument = load_instrument(pair)
        async with AsyncClient(
            pair,
            account,
            target=self._run.targets[pair],
            market_data=self._run.market_data_target,
            retry=PATIENT,
        ) as client:
            resting = 0
            while not self._stopping.is_set():
                last = (await client.ticker()).last_trade
                price = float(last.price or "100") * chance.uniform(0.995, 1.005)
                made = client.next_client_order_id()
                lots = chance.randrange(100, 500)
                report = await client.submit(
                    chance.choice((Side.BUY, Side.SELL)),
                    client_order_id=made,
                    price=f"{price:.2f}",
                    quantity=lots_to_quantity(instrument, lots),
                )
                if ExecutionKind(report.kind) in _ACKNOWLEDGED:
                    self._outcome.acknowledged[pair].add(made)
                    self._counts["orders acknowledged"] += 1
                    resting += 1
                else:
                    self._counts[f"orders refused: {report.message}"] += 1
                if resting >= RESTING_LIMIT:
                    await client.cancel_all()
                    resting = 0
                await asyncio.sleep(PAUSE_S)

    # Money.

    async def _move_money(self) -> None:
        while not self._stopping.is_set():
            asset = self._chance.choice(list(MOVED))
            factor = self._chance.randrange(100, 110)
            amount = f"{int(float(MOVED[asset]) * factor * 100) / 10_000:.4f}"
            act = self._chance.choice((self._in, self._around, self._out))
            try:
                await act(asset, amount)
            except InvalidRequest as error:
                # Of what the books may refuse, only a lack of money is no finding here.
                self._counts[f"moves refused: {error.reason}"] += 1
                if not error.reason.startswith("INSUFFICIENT"):
                    self._outcome.complain(f"the owner was refused: {error}")

    async def _in(self, asset: str, amount: str) -> None:
        await self._deposit(self._owner, asset, amount)

    async def _deposit(self, money: AsyncMoneyClient, asset: str, amount: str) -> None:
        address = (await money.deposit_address(asset)).address
        transaction = await money.simulate_deposit(address, asset, amount)
        state = ""
        async for seen in money.follow_deposit(transaction, watch=WATCH):
            state = seen.state
        self._counts[f"deposits {state}"] += 1

    async def _around(self, asset: str, amount: str) -> None:
        await self._owner.transfer(asset, amount)
        await self._owner.transfer(asset, amount, source="trading", target="funding")
        self._counts["moves to trading and back"] += 1

    async def _out(self, asset: str, amount: str) -> None:
        made = uuid4()
        asked = await self._owner.withdraw(asset, amount, OUTSIDE, withdrawal_id=made)
        for approver in APPROVERS[: asked.approvals_needed]:
            await self._owner.approve(made, approver, asked.digest)
        state = ""
        async for seen in self._owner.follow_withdrawal(made, watch=WATCH):
            state = seen.state
        self._counts[f"withdrawals {state}"] += 1

    async def finish(self) -> None:
        """Wait until no deposit or withdrawal is under way any more."""
        ends = time.monotonic() + FINISH_S
        while True:
            counts = (await self._owner.funds_status()).counts
            waiting = {name: counts[name] for name in UNDER_WAY if counts.get(name)}
            if not waiting:
                return
            if time.monotonic() > ends:
                self._outcome.complain(f"still under way after {FINISH_S} s: {waiting}")
                return
            await asyncio.sleep(0.2)

    def summary(self) -> list[str]:
        """Return a line for each thing that happened."""
        return [f"{count:,} {name}" for name, count in sorted(self._counts.items())]
