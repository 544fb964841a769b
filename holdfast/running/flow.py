"""Generated order flow for a demonstration: `python -m holdfast.running.flow`.

A market maker quotes around a price that wanders, over packed batches; some traders take, rest,
amend and cancel, one call an order. On several pairs they are the same accounts with one balance.
Every decision comes from one seeded generator, which is printed; what is not repeatable is only
when the exchange answers. It sends at a given rate as long as the exchange keeps up and otherwise
less: nothing piles up here.

Twice a second a report (JSON, by pair) is written for whoever shows it.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from exchange.config import load_instrument
from exchange.enums import ExecutionKind, Reason, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.units import lots_to_quantity, ticks_to_price, units_to_amount
from holdfast import packed
from holdfast.client import AsyncClient
from holdfast.errors import CallFailed, HoldfastError
from holdfast.requests import ClientOrderIds
from holdfast.retry import Retry
from holdfast.running.demonstration import MAKER, TRADERS, first_price
from holdfast.running.services import first_of

SINGLE_SHARE_PERCENT: Final = 30
"""So much of the flow are single orders; the rest are quotes in batches."""
SINGLE_LIMIT: Final = 500
"""Most single orders a second: beyond, calls would cost more than the exchange."""
CYCLES_LIMIT: Final = 50
"""Most batches a second; a faster flow has larger ones."""
QUOTES_LEAST: Final = 24
RESTING_LIMIT: Final = 20
"""Orders a trader leaves in the book before it cancels the oldest."""
UNDER_WAY_LIMIT: Final = 64
REPORT_S: Final = 0.5
LATENCIES_KEPT: Final = 2_000
_EXPECTED: Final = (Reason.ORDER_UNKNOWN, Reason.POST_ONLY_WOULD_TRADE)
"""Refusals that belong to trading: the order was just filled, or the price just moved."""

log = logging.getLogger(__name__)


class Tally:
    """What was sent and what became of it, since the start."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.single_us: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self.batch_us: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self.last_error = ""

    def single(self, report: Any, started_ns: int) -> None:
        """Count the answer to a single command."""
        self.single_us.append((time.monotonic_ns() - started_ns) // 1_000)
        self.counts["commands"] += 1
        self._outcome(int(report.kind), int(report.reason), 1)

    def batch(self, acks: packed.Acks, started_ns: int) -> None:
        """Count the answers to a batch."""
        self.batch_us.append((time.monotonic_ns() - started_ns) // 1_000)
        self.counts["commands"] += len(acks)
        self.counts["batches"] += 1
        outcomes = Counter(zip(acks["kind"].tolist(), acks["reason"].tolist(), strict=True))
        for (kind, reason), count in outcomes.items():
            self._outcome(kind, reason, count)

    def _outcome(self, kind: int, reason: int, count: int) -> None:
        if kind == ExecutionKind.REPLAYED:
            self.counts["replayed"] += count
        elif kind == ExecutionKind.REJECTED and reason not in _EXPECTED:
            self.counts["rejected"] += count
            self.reasons[Reason(reason).name] += count

    def failed(self, error: CallFailed) -> None:
        """Count a call that failed for good."""
        self.counts["failed"] += 1
        self.last_error = str(error)

    def report(self) -> dict[str, Any]:
        """Return everything as plain values; latencies as [median, 99th percentile] in µs."""
        return {
            "time_ns": time.time_ns(),
            "commands": self.counts["commands"],
            "batches": self.counts["batches"],
            "rejected": self.counts["rejected"],
            "replayed": self.counts["replayed"],
            "failed": self.counts["failed"],
            "reasons": dict(self.reasons.most_common(3)),
            "last_error": self.last_error,
            "single_us": _percentiles(self.single_us),
            "batch_us": _percentiles(self.batch_us),
        }


def _percentiles(values: deque[int]) -> list[int]:
    ordered = sorted(values)
    if not ordered:
        return []
    return [ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]]


@dataclass(slots=True)
class Market:
    """The price around which everybody trades: a bounded random walk in ticks."""

    instrument: Instrument
    chance: random.Random
    fair_ticks: int

    @property
    def unit_ticks(self) -> int:
        """Return a small distance at this price: a fifth of a basis point, at least a tick."""
        return max(1, self.fair_ticks // 50_000)

    def wander(self) -> None:
        """Move the price a little; it stays well inside of what the instrument knows."""
        step = round(self.chance.gauss(0, 2) * self.unit_ticks)
        low, high = 10_000, self.instrument.price_capacity_ticks * 3 // 4
        self.fair_ticks = min(max(self.fair_ticks + step, low), high)

    def near(self, side: Side, units: int) -> int:
        """Return the price so many units away from the fair one, away from the other side."""
        away = units * self.unit_ticks + self.chance.randrange(self.unit_ticks)
        price = self.fair_ticks - away if side == Side.BUY else self.fair_ticks + away
        return min(max(price, 1), self.instrument.price_capacity_ticks - 1)

    def lots(self) -> int:
        """Return a size: mostly small, sometimes large; worth about 100 to 5,000 of the quote."""
        worth_units = self.chance.choice((1, 1, 2, 5, 10, 50)) * 100 * 10**8
        lot_units = self.fair_ticks * self.instrument.quote_units_per_tick_lot
        return max(1, worth_units // lot_units * self.chance.randrange(50, 150) // 100)


class Maker:
    """Keeps quotes on both sides, replacing the oldest each cycle."""

    def __init__(self, client: AsyncClient, market: Market, tally: Tally, size: int) -> None:
        self._client = client
        self._market = market
        self._tally = tally
        self._size = size
        self._quotes: deque[int] = deque()

    async def run(self, interval_s: float) -> None:
        """Quote until cancelled."""
        async with self._client.batches() as batches:
            await batches.submit(packed.cancel_all())
            async for _ in _ticks(interval_s):
                started_ns = time.monotonic_ns()
                try:
                    acks = await batches.submit(self._cycle())
                except CallFailed as error:
                    self._tally.failed(error)
                else:
                    self._tally.batch(acks, started_ns)

    def _cycle(self) -> packed.Records:
        """Return the cancels of the oldest quotes and as many new ones."""
        keep = max(QUOTES_LEAST, 2 * self._size) - self._size
        old = [self._quotes.popleft() for _ in range(max(0, len(self._quotes) - keep))]
        first = self._client.next_client_order_id.block(self._size)
        ids = [first + i * ClientOrderIds.step() for i in range(self._size)]
        sides = [Side.BUY if i % 2 else Side.SELL for i in range(self._size)]
        chance, market = self._market.chance, self._market
        prices = [market.near(side, 1 + int(chance.expovariate(0.15))) for side in sides]
        sizes = [5 * market.lots() for _ in ids]
        self._quotes.extend(ids)
        fresh = packed.new_orders(ids, sides, prices, sizes, post_only=True)
        return np.concatenate((packed.cancels(old), fresh)) if old else fresh


class Trader:
    """Enters one order at a time, now and then one that rests."""

    def __init__(self, client: AsyncClient, market: Market, tally: Tally) -> None:
        self._client = client
        self._market = market
        self._tally = tally
        self._resting: deque[int] = deque()

    async def begin(self) -> None:
        """Take back what an earlier flow left in the book."""
        await self._client.cancel_all()

    def act(self) -> Coroutine[Any, Any, None]:
        """Decide on the next command; return what sends it."""
        chance, market = self._market.chance, self._market
        instrument = market.instrument
        side = chance.choice((Side.BUY, Side.SELL))
        lots = market.lots()
        quantity = lots_to_quantity(instrument, lots)
        kind = chance.random()
        order: dict[str, Any]
        if len(self._resting) >= RESTING_LIMIT:
            return self._send(self._client.cancel(client_order_id=self._resting.popleft()))
        if kind < 0.5:
            through = market.near(Side.SELL if side == Side.BUY else Side.BUY, 15)
            price = ticks_to_price(instrument, through)
            force = TimeInForce.IMMEDIATE_OR_CANCEL
            order = {"price": price, "quantity": quantity, "time_in_force": force}
        elif kind < 0.65:
            order = {"quantity": quantity}
        elif kind < 0.75:
            worth = market.fair_ticks * instrument.quote_units_per_tick_lot * lots
            order = {"amount": units_to_amount(instrument.quote_decimals, worth)}
        elif kind < 0.95 or not self._resting:
            return self._rest(side, quantity)
        else:
            named = chance.choice(self._resting)
            return self._send(self._client.amend(client_order_id=named, quantity=quantity))
        return self._send(self._client.submit(side, **order))

    def _rest(self, side: Side, quantity: str) -> Coroutine[Any, Any, None]:
        given = self._client.next_client_order_id()
        self._resting.append(given)
        away = self._market.near(side, self._market.chance.randrange(5, 60))
        price = ticks_to_price(self._market.instrument, away)
        return self._send(
            self._client.submit(side, client_order_id=given, price=price, quantity=quantity)
        )

    async def _send(self, command: Coroutine[Any, Any, Any]) -> None:
        started_ns = time.monotonic_ns()
        try:
            report = await command
        except CallFailed as error:
            self._tally.failed(error)
        else:
            self._tally.single(report, started_ns)


async def _ticks(interval_s: float) -> Any:
    """Yield at a steady rhythm; what was missed is left out, not made up for."""
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        yield
        due = max(due + interval_s, clock())
        await asyncio.sleep(due - clock())


class Flow:
    """All participants of the demonstration on one pair."""

    def __init__(self, instrument: Instrument, target: str, given: argparse.Namespace) -> None:
        self.tally = Tally()
        self._instrument = instrument
        self._target = target
        self._given = given
        self._chance = random.Random(f"{given.seed} {instrument.pair}")

    def _client(self, account: int) -> AsyncClient:
        return AsyncClient(
            self._instrument.pair,
            account,
            target=self._target,
            market_data=self._given.market_data,
            retry=Retry(patience_s=60.0, attempt_s=10.0),
        )

    async def run(self) -> None:
        """Trade until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            maker, *clients = [
                await stack.enter_async_context(self._client(account))
                for account in (MAKER, *TRADERS)
            ]
            market = Market(self._instrument, self._chance, await self._last_price(maker))
            single_rate = min(self._given.rate * SINGLE_SHARE_PERCENT // 100, SINGLE_LIMIT)
            single_rate = max(1, single_rate)
            batch_rate = max(1, self._given.rate - single_rate)
            # Half of a batch are cancels.
            size = max(4, batch_rate // (2 * CYCLES_LIMIT))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wander(market))
                quoting = Maker(maker, market, self.tally, size)
                tasks.create_task(quoting.run(2 * size / batch_rate))
                traders = [Trader(client, market, self.tally) for client in clients]
                tasks.create_task(self._trade(traders, 1 / single_rate, tasks))

    async def _last_price(self, client: AsyncClient) -> int:
        """Return where the market stands, in ticks: an exchange that comes back goes on there."""
        ticker = await client.ticker()
        if ticker.last_trade.price_ticks:
            return int(ticker.last_trade.price_ticks)
        units = first_price(self._instrument) * 10**self._instrument.quote_decimals
        return int(units // self._instrument.tick_quote_units)

    async def _wander(self, market: Market) -> None:
        async for _ in _ticks(0.1):
            market.wander()

    async def _trade(
        self, traders: list[Trader], interval_s: float, tasks: asyncio.TaskGroup
    ) -> None:
        for trader in traders:
            await trader.begin()
        room = asyncio.Semaphore(UNDER_WAY_LIMIT)
        async for _ in _ticks(interval_s):
            await room.acquire()
            task = tasks.create_task(self._chance.choice(traders).act())
            task.add_done_callback(lambda _: room.release())


async def _write_reports(path: Path, flows: dict[str, Flow]) -> None:
    while True:
        report = {pair: flow.tally.report() for pair, flow in flows.items()}
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(report), encoding="ascii")
        unfinished.replace(path)
        await asyncio.sleep(REPORT_S)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m holdfast.running.flow", description=__doc__)
    parser.add_argument(
        "--pair",
        action="append",
        required=True,
        metavar="PAIR=HOST:PORT",
        help="a pair and its order entry; may be given several times",
    )
    parser.add_argument("--market-data", default="127.0.0.1:8851")
    parser.add_argument("--rate", type=int, default=300, help="commands a second in each pair")
    parser.add_argument("--seed", type=int, default=1, help="what the decisions come from")
    parser.add_argument("--report", type=Path, help="file to write a report to, twice a second")
    parser.add_argument("--instruments", type=Path, help="instrument file")
    given = parser.parse_args()
    if not 1 <= given.rate <= 1_000_000:
        parser.error(f"--rate is {given.rate}; it must be from 1 to 1000000")
    return given


async def _main(given: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    flows = {}
    for item in given.pair:
        pair, _, target = item.partition("=")
        flows[pair] = Flow(load_instrument(pair, given.instruments), target, given)
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            for flow in flows.values():
                tasks.create_task(flow.run())
            if given.report is not None:
                tasks.create_task(_write_reports(given.report, flows))


def main() -> int:
    """Trade until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = _arguments()
    pairs = ", ".join(given.pair)
    log.info("flow of %d commands/s on %s, seed %d", given.rate, pairs, given.seed)
    status = 0
    try:
        asyncio.run(_main(given))
    except* HoldfastError as errors:
        status = 1
        log.error("%s", first_of(errors))
    return status


if __name__ == "__main__":
    sys.exit(main())
