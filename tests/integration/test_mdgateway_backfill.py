"""Candles filled in from a real execution log, against what its trades plainly say."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
import pytest

from exchange.enums import ExecutionKind
from exchange.feed import ExecutionFeed
from exchange.records import E_QUANTITY, E_TIME_NS, kind_of, price_of
from exchange.v1 import enums_pb2, market_data_pb2_grpc, pair_admin_pb2, pair_admin_pb2_grpc
from exchange.v1 import market_data_pb2 as of
from mdgateway.feed.candles import Interval
from tests.integration.market_data_processes import (
    INSTRUMENTS,
    PAIR,
    PATIENCE_S,
    ROOT,
    Processes,
    Traders,
    channel_to,
    processes_in_memory,
    wait_serving,
)

pytestmark = pytest.mark.integration

SECOND_NS = 1_000_000_000
MONDAY_NS = 4 * 86_400 * SECOND_NS
"""1970-01-05, where weeks begin."""


class Trade(NamedTuple):
    number: int
    time_ns: int
    price: int
    lots: int


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        # A ring that forgets at once: what the gateway does not see live it never sees.
        small = INSTRUMENTS.replace("event_capacity = 65536", "event_capacity = 512")
        assert small != INSTRUMENTS
        processes.instruments.write_text(small)
        yield processes


async def _trades_in_log(entry: str) -> list[Trade]:
    found: list[Trade] = []
    async with (
        ExecutionFeed(f"127.0.0.1:{entry}", PAIR) as feed,
        aclosing(feed.chunks(0)) as chunks,
    ):
        async for chunk in chunks:
            kinds, prices = kind_of(chunk.rows), price_of(chunk.rows)
            for row, kind, price in zip(chunk.rows, kinds, prices, strict=True):
                if kind == ExecutionKind.TRADE:
                    number = len(found) + 1
                    times, lots = int(row[E_TIME_NS]), int(row[E_QUANTITY])
                    found.append(Trade(number, times, int(price), lots))
            if chunk.next_number >= chunk.committed_number:
                break
    return found


def _plain_candles(trades: list[Trade], interval: Interval) -> list[tuple[int, ...]]:
    """Return start, open, high, low, close, lots, count and last number of each candle."""
    length_ns = interval.seconds * SECOND_NS
    offset_ns = MONDAY_NS if interval is Interval.WEEK else 0
    spans: dict[int, list[Trade]] = {}
    for trade in trades:
        start_ns = (trade.time_ns - offset_ns) // length_ns * length_ns + offset_ns
        spans.setdefault(start_ns, []).append(trade)
    found: list[tuple[int, ...]] = []
    for start_ns, inside in spans.items():
        prices = [trade.price for trade in inside]
        ends = prices[0], max(prices), min(prices), prices[-1]
        lots = sum(trade.lots for trade in inside)
        found.append((start_ns, *ends, lots, len(inside), inside[-1].number))
    return found


def _told_candles(stub: Any, interval: Interval) -> list[tuple[int, ...]]:
    request = of.GetCandlesRequest(
        pair=PAIR, interval=of.CandleInterval.ValueType(interval), page_size=1_000
    )
    answer = stub.GetCandles(request, timeout=PATIENCE_S)
    assert not answer.next_to_ns
    return [
        (
            one.start_ns,
            one.open_ticks,
            one.high_ticks,
            one.low_ticks,
            one.close_ticks,
            one.volume_lots,
            one.trade_count,
            one.last_trade_number,
        )
        for one in answer.candles
    ]


def _until_the_next_second(channel: grpc.Channel) -> None:
    """Let the log say something until the second of what it said before is over."""
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    second = time.time_ns() // SECOND_NS
    number, later = 100, False
    while not later:
        # The last of them is of a second that began after the trades.
        later = time.time_ns() // SECOND_NS > second
        number += 1
        admin.AllotFunds(
            pair_admin_pb2.AllotFundsRequest(
                pair=PAIR,
                account=3,
                asset=enums_pb2.ASSET_BASE,
                amount="1",
                transfer_number=number,
            ),
            timeout=PATIENCE_S,
        )


def _back_fill(entry: str, processes: Processes) -> str:
    store = processes.folder / "run" / "mdgateway"
    command = ["-m", "mdgateway.history", "--feed", f"127.0.0.1:{entry}", "--pair", PAIR]
    done = subprocess.run(
        [sys.executable, *command, "--store", str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout


def test_a_back_fill_makes_the_candles_of_every_trade(processes: Processes) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    processes.start_engine()
    entry = processes.start_entry()
    traders = Traders(entry, seed)
    wait_serving(traders.channel, "orders")
    traders.allot()
    with channel_to(processes.start_gateway()) as channel:
        wait_serving(channel, "marketdata")
        traders.trade(batch_count=4, orders_per_batch=20)
    assert processes.kill("gateway", signal.SIGTERM) == 0
    for _ in range(3):
        # Nobody looks, and the ring is lapped each time.
        traders.trade(batch_count=8, orders_per_batch=100)
        _until_the_next_second(traders.channel)
    assert "trades up to the last whole second" in _back_fill(entry, processes)
    trades = asyncio.run(_trades_in_log(entry))
    with channel_to(processes.start_gateway()) as channel:
        wait_serving(channel, "marketdata")
        stub = market_data_pb2_grpc.MarketDataServiceStub(channel)
        # Live again: what comes now is laid onto what was filled in.
        before = len(trades)
        while len(trades) == before:
            traders.trade(batch_count=2, orders_per_batch=10)
            trades = asyncio.run(_trades_in_log(entry))
        request = of.StreamTickerRequest(pair=PAIR)
        for answer in stub.StreamTicker(request, timeout=PATIENCE_S):
            ticker = answer.ticker
            if ticker.trade_count > len(trades):
                trades = asyncio.run(_trades_in_log(entry))
            if ticker.trade_count == len(trades):
                break
        for interval in Interval:
            assert _told_candles(stub, interval) == _plain_candles(trades, interval), interval
        assert ticker.trade_count_24h == len(trades) > before > 300
        assert ticker.volume_24h_lots == sum(trade.lots for trade in trades)
        assert int(ticker.volume_since_ns) < trades[0].time_ns
    traders.channel.close()
