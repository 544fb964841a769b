"""The last 24 hours over restarts of the gateway, with the real store: those of all trades."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from exchange.enums import ExecutionKind
from exchange.feed import Chunk
from exchange.records import E_PRICE, E_QUANTITY, E_TIME_NS, E_VERB, EXECUTION_WORDS
from mdgateway.feed.publisher import Publisher
from mdgateway.feed.ticker import DAY_NS, MINUTE_NS, Figures
from mdgateway.history.backfill import collect, write_file
from mdgateway.history.source import CandleKeeper
from mdgateway.history.store import CandleStore
from tests.unit.market_data_desk import Desk
from tests.unit.market_data_writer import INSTRUMENT

HOUR = 60 * MINUTE_NS
MIDNIGHT = 20_000 * DAY_NS


class Shift:
    """A writer that goes on while gateways come and go over one store; clocks move by hand."""

    def __init__(self, folder: Path, seed: int) -> None:
        print(f"seed {seed}")
        self._chance = np.random.default_rng(seed)
        self.folder = folder / "candles"
        self.desk = Desk(folder)
        self.told: list[tuple[int, int, int]] = []
        """(time, price ticks, lots) of every trade there ever was."""
        self._store: CandleStore | None = None
        self.desk.time_ns = MIDNIGHT - 26 * HOUR
        self.desk.level(1, 10, 5)
        self.desk.level(2, 60_000, 5)
        self.desk.writer.depth()

    def open(self) -> None:
        """Start a gateway."""
        self._store = CandleStore(self.folder)
        self._store.take_imports()
        self._keeper = CandleKeeper(self._store, lambda: self.desk.time_ns)
        self.desk.publisher = Publisher(INSTRUMENT, self.desk.config)
        self.desk.publisher.keep_candles(self._keeper.source_of(INSTRUMENT.pair))
        self.step()

    def stop(self, *, killed: bool = False) -> None:
        """End the gateway; killed: what it would still write is lost."""
        assert self._store is not None
        if not killed:
            asyncio.run(self._keeper.write())
        self._store.close()
        self._store = None
        self.desk.publisher.close()

    def write(self) -> None:
        """Let the gateway write what it counted so far."""
        asyncio.run(self._keeper.write())

    def close(self) -> None:
        """End everything."""
        if self._store is not None:
            self.stop()
        self.desk.writer.close()

    def trade(self, count: int, until_ns: int) -> None:
        """Let so many trades happen up to a moment; a gateway that runs sees each."""
        times = np.sort(self._chance.integers(self.desk.time_ns, until_ns, count))
        for time_ns in times.tolist():
            self.desk.time_ns = time_ns
            self.desk.writer.time_ns = time_ns
            price, lots = (
                self._chance.integers(1, 60_000),
                self._chance.integers(1, INSTRUMENT.quantity_limit_lots),
            )
            side = int(self._chance.integers(1, 3))
            self.desk.writer.trade(side, int(price), int(lots))
            self.told.append((time_ns, int(price), int(lots)))
            if self._store is not None:
                self.desk.step(0)
        self.desk.time_ns = until_ns

    def lap(self) -> None:
        """Let other events push every trade out of the ring."""
        for _ in range(INSTRUMENT.event_capacity + 1):
            self.desk.writer.level(1, 10, int(self._chance.integers(1, 100)))
        self.desk.writer.depth()

    def step(self) -> None:
        """Let the gateway look."""
        self.desk.step(0)
        assert self.desk.publisher.ready

    def figures(self) -> Figures:
        """Return what the gateway says."""
        self.step()
        return self.desk.publisher.figures()

    def plain(self) -> Figures:
        """Return what all trades say."""
        first = (self.desk.time_ns // MINUTE_NS - 1_439) * MINUTE_NS
        inside = [trade for trade in self.told if trade[0] >= first]
        prices = [price for _, price, _ in inside]
        lots = sum(one[2] for one in inside)
        tick_lots = sum(one[1] * one[2] for one in inside)
        average = (2 * tick_lots + lots) // (2 * lots)
        figures = lots, tick_lots, max(prices), min(prices), average
        return Figures(*figures, first, prices[0], len(inside))

    def back_fill(self, first: int = 0) -> None:
        """Write what an operator's command would from the log from an execution on."""
        rows = np.zeros((len(self.told) - first, EXECUTION_WORDS), np.int64)
        rows[:, E_VERB] = ExecutionKind.TRADE
        rows[:, E_TIME_NS], rows[:, E_PRICE], rows[:, E_QUANTITY] = np.array(self.told[first:]).T

        async def chunks() -> AsyncIterator[Chunk]:
            yield Chunk(first, rows, first + len(rows))

        collected = asyncio.run(collect(chunks(), from_start=not first))
        assert write_file(self.folder, INSTRUMENT.pair, collected) is not None


@pytest.fixture(params=[1, 2])
def shift(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shift]:
    shift = Shift(tmp_path, request.param)
    yield shift
    shift.close()


def test_a_restart_after_midnight_loses_nothing(shift: Shift) -> None:
    shift.open()
    shift.trade(300, MIDNIGHT + 3 * MINUTE_NS)
    shift.lap()
    assert shift.figures() == shift.plain()
    shift.stop()
    shift.open()
    assert shift.figures() == shift.plain()
    shift.trade(100, MIDNIGHT + 20 * HOUR)
    assert shift.figures() == shift.plain()


def test_what_store_and_ring_both_have_counts_once(shift: Shift) -> None:
    shift.open()
    shift.trade(100, MIDNIGHT - 2 * HOUR)
    shift.write()
    shift.trade(50, MIDNIGHT - HOUR)
    shift.stop(killed=True)
    # Of these nobody sees any before the gateway is back.
    shift.trade(50, MIDNIGHT + HOUR)
    shift.open()
    assert shift.figures() == shift.plain()
    shift.stop()
    shift.open()
    assert shift.figures() == shift.plain()


def test_what_was_lost_over_midnight_is_said_until_it_is_filled_in(shift: Shift) -> None:
    shift.open()
    shift.trade(200, MIDNIGHT - 2 * HOUR)
    shift.stop()
    shift.trade(100, MIDNIGHT + HOUR)
    shift.lap()
    shift.open()
    figures, plain = shift.figures(), shift.plain()
    assert figures.since_ns == MIDNIGHT
    assert figures.lots < plain.lots
    shift.trade(10, MIDNIGHT + 2 * HOUR)
    shift.stop()
    shift.trade(10, MIDNIGHT + 3 * HOUR)
    shift.back_fill()
    shift.open()
    assert shift.figures() == shift.plain()
    shift.trade(10, MIDNIGHT + 4 * HOUR)
    assert shift.figures() == shift.plain()


def test_a_loss_within_the_day_is_filled_in_from_the_engines_figures(shift: Shift) -> None:
    shift.open()
    shift.trade(200, MIDNIGHT + HOUR)
    shift.stop()
    shift.trade(100, MIDNIGHT + 2 * HOUR)
    shift.lap()
    shift.trade(50, MIDNIGHT + 3 * HOUR)
    for _ in range(2):
        shift.open()
        figures, plain = shift.figures(), shift.plain()
        assert figures == plain
        shift.stop()


def test_a_log_that_was_pruned_fills_in_too(shift: Shift) -> None:
    shift.open()
    shift.trade(200, MIDNIGHT - 2 * HOUR)
    shift.stop()
    shift.trade(100, MIDNIGHT + HOUR)
    shift.lap()
    shift.back_fill(first=150)
    shift.open()
    assert shift.figures() == shift.plain()


def test_a_pair_that_began_anew_begins_without_figures(shift: Shift, tmp_path: Path) -> None:
    shift.open()
    shift.trade(200, MIDNIGHT + HOUR)
    shift.stop()
    shift.desk.writer.close()
    anew = Desk(tmp_path)
    anew.time_ns = shift.desk.time_ns
    shift.desk, shift.told = anew, []
    anew.level(1, 10, 5)
    anew.level(2, 60_000, 5)
    anew.writer.depth()
    shift.trade(20, MIDNIGHT + 2 * HOUR)
    shift.open()
    assert shift.figures() == shift.plain()
