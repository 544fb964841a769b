"""The client's orders and status from a real gateway: cut lines, dead engines, a frozen gateway."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from exchange.enums import PairStatus
from exchange.v1 import enums_pb2
from holdfast import (
    AsyncMarketData,
    Book,
    InvalidRequest,
    MarketData,
    MarketStatus,
    OrderStep,
    Retry,
    StepKind,
)
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    Processes,
    Traders,
    Watcher,
    channel_to,
    processes_in_memory,
    wait_serving,
)
from tests.integration.plain_client import Cable

pytestmark = pytest.mark.integration

LASTING = Retry(patience_s=PATIENCE_S, silence_s=3.0)
Sides = tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


class Follower:
    """Follows orders and depth of one gateway at once and remembers what they told."""

    def __init__(self) -> None:
        self.steps: list[OrderStep] = []
        self.by_orders: list[tuple[int, int, Sides]] = []
        """(epoch, sequence, levels) after each step with a live book."""
        self.by_depth: dict[tuple[int, int], Sides] = {}
        self.changed = asyncio.Event()

    async def orders(self, market: AsyncMarketData) -> None:
        async for step in market.orders(PAIR):
            self.steps.append(step)
            if step.book.live:
                place = step.book.epoch, step.book.sequence
                self.by_orders.append((*place, levels_of(step)))
            self.changed.set()

    async def depth(self, market: AsyncMarketData) -> None:
        async for book in market.depth(PAIR, -1):
            if book.live:
                sides = book.bids(1 << 30), book.asks(1 << 30)
                self.by_depth[book.epoch, book.sequence] = (
                    [one[:3] for one in sides[0]],
                    [one[:3] for one in sides[1]],
                )
                self.changed.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def wait_for_steps(self, count: int) -> None:
        await self.wait(lambda: len(self.steps) > count)

    def compare(self) -> int:
        """Compare the levels at each sequence that both told; return how many there were."""
        held = {(epoch, sequence): levels for epoch, sequence, levels in self.by_orders}
        both = held.keys() & self.by_depth.keys()
        for place in both:
            assert held[place] == self.by_depth[place], place
        return len(both)


def levels_of(step: OrderStep) -> Sides:
    """Return what a depth stream tells of a book of orders."""
    sides = step.book.bids(1 << 30), step.book.asks(1 << 30)
    bids, asks = ([one[:3] for one in side] for side in sides)
    return bids, asks


def check_each_event_came_once(steps: list[OrderStep]) -> None:
    """Check positions, and that trades come without a gap, while no step says that some missed."""
    events = [event for step in steps for event in step.events]
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    trades = [event.trade_number for event in events if event.trade_number]
    assert trades == list(range(trades[0], trades[-1] + 1))
    assert len(trades) > 100


def test_each_event_comes_once_through_cut_lines_and_levels_are_those_of_depth(
    processes: Processes,
) -> None:
    processes.start_engine()
    entry, gateway = processes.start_entry(), processes.start_gateway("--tick-ms", "2")
    traders = Traders(entry, random.SystemRandom().randrange(1 << 32))
    cable = Cable(int(gateway))
    with channel_to(gateway) as channel:
        wait_serving(traders.channel, "orders")
        traders.allot()
        wait_serving(channel, "marketdata")

    async def scenario() -> Follower:
        follower = Follower()
        async with (
            AsyncMarketData(f"127.0.0.1:{cable.port}", retry=LASTING) as cut,
            AsyncMarketData(f"127.0.0.1:{gateway}", retry=LASTING) as whole,
        ):
            tasks = [
                asyncio.create_task(follower.orders(cut)),
                asyncio.create_task(follower.depth(whole)),
            ]
            await follower.wait(lambda: bool(follower.steps))
            for _ in range(5):
                told = len(follower.steps)
                trading = asyncio.create_task(asyncio.to_thread(traders.trade, 4, 50))
                await follower.wait_for_steps(told + 20)
                cable.cut()
                await trading
            watcher = Watcher(processes)
            last = watcher.close()
            sequence = max(sequence for _, sequence in watcher.books)
            await follower.wait(lambda: follower.by_orders[-1][1] >= sequence)
            bids, asks = follower.by_orders[-1][2]
            told_last = {(1, price): rest for price, *rest in bids} | {
                (2, price): rest for price, *rest in asks
            }
            assert told_last == {key: list(value) for key, value in last.items()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return follower

    follower = asyncio.run(scenario())
    kinds = Counter(step.kind for step in follower.steps)
    compared = follower.compare()
    print(kinds, f"{len(follower.by_depth)} depths, {compared} compared")
    assert follower.steps[0].kind is StepKind.BEGUN
    assert kinds[StepKind.BEGUN] == 1
    # The last cut may have come when everything was told.
    assert kinds[StepKind.STANDSTILL] - kinds[StepKind.RESUMED] in {0, 1}
    assert kinds[StepKind.RESUMED] > 0
    assert kinds[StepKind.MISSED] == kinds[StepKind.CONTRADICTED] == 0
    check_each_event_came_once(follower.steps)
    assert compared > 5
    cable.close()
    traders.channel.close()


async def until(
    told: AsyncIterator[MarketStatus], condition: Callable[[MarketStatus], bool]
) -> MarketStatus:
    """Return the first status that fulfils a condition."""
    async with asyncio.timeout(PATIENCE_S):
        async for status in told:
            if condition(status):
                return status
    raise AssertionError("the stream ended")


def test_silence_a_dead_engine_and_a_dead_gateway_are_three_things(processes: Processes) -> None:
    processes.start_engine()
    gateway = processes.start_gateway()
    with channel_to(gateway) as channel:
        wait_serving(channel, "marketdata")

    async def scenario() -> None:
        async with AsyncMarketData(f"127.0.0.1:{gateway}", retry=LASTING) as market:
            told, steps = market.status(PAIR), market.orders(PAIR)
            status = await until(told, lambda one: one.live)
            assert status.status is PairStatus.OPEN
            assert status.engine_state == enums_pb2.ENGINE_STATE_READY
            assert (await anext(steps)).kind is StepKind.BEGUN
            beat = await until(told, lambda one: one.gateway_time_ns > 0)
            later = await until(told, lambda one: one.gateway_time_ns > beat.gateway_time_ns)
            assert (later.live, later.sequence) == (True, beat.sequence)

            processes.kill("engine")
            status = await until(told, lambda one: not one.live)
            assert (status.connected, status.epoch) == (True, beat.epoch)
            assert "data stand still" in status.message
            step = await anext(steps)
            assert (step.kind, step.book.live) == (StepKind.STANDSTILL, False)
            processes.start_engine()
            status = await until(told, lambda one: one.live and one.epoch > beat.epoch)
            assert status.message == ""
            step = await anext(steps)
            assert (step.kind, step.book.live) == (StepKind.ENGINE_RESTARTED, True)
            assert step.book.epoch == status.epoch
            assert (await market.get_status(PAIR)).epoch == status.epoch

            pid = processes.running["gateway"].pid
            os.kill(pid, signal.SIGSTOP)
            try:
                status = await until(told, lambda one: not one.live)
                assert (status.connected, status.message != "") == (False, True)
                assert (await anext(steps)).kind is StepKind.STANDSTILL
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (await until(told, lambda one: one.live)).connected
            assert (await anext(steps)).kind is StepKind.RESUMED

    asyncio.run(scenario())


async def first_book(told: AsyncIterator[Book]) -> bool:
    """Return whether the first book that a stream brings is live."""
    async with asyncio.timeout(PATIENCE_S):
        async for book in told:
            if book.epoch:
                return book.live
    raise AssertionError("the stream ended")


def test_a_book_that_is_begun_while_the_engine_is_down_stands_still(processes: Processes) -> None:
    processes.start_engine()
    gateway = f"127.0.0.1:{processes.start_gateway()}"
    with channel_to(gateway.split(":")[1]) as channel:
        wait_serving(channel, "marketdata")

    async def scenario() -> None:
        async with AsyncMarketData(gateway, retry=LASTING) as market:
            states = market.status(PAIR)
            await until(states, lambda one: one.live)
            processes.kill("engine")
            down = await until(states, lambda one: not one.live)
            told = market.depth(PAIR)
            assert not await first_book(told)
            with MarketData(gateway, retry=LASTING) as blocking:
                books = blocking.depth(PAIR)
                assert not next(book for book in books if book.epoch).live
                # Some heartbeats later, too.
                for _ in range(3):
                    beat = await anext(states)
                    assert (beat.live, beat.epoch) == (False, down.epoch)
                processes.start_engine()
                async with asyncio.timeout(PATIENCE_S):
                    epochs = [
                        await anext(book.epoch async for book in told if book.live),
                        next(book.epoch for book in books if book.live),
                    ]
            assert min(epochs) > down.epoch

    asyncio.run(scenario())


def test_the_blocking_client_tells_the_same(processes: Processes) -> None:
    processes.start_engine()
    gateway = processes.start_gateway()
    with channel_to(gateway) as channel:
        wait_serving(channel, "marketdata")
    with MarketData(f"127.0.0.1:{gateway}", retry=LASTING) as market:
        assert next(market.orders(PAIR)).kind is StepKind.BEGUN
        assert next(market.status(PAIR)).live
        assert market.get_status(PAIR).has_book
        with pytest.raises(InvalidRequest, match="PAIR_UNKNOWN"):
            market.get_status("NO-PAIR")
