"""Figures of the last 24 hours from trades, in integers, a bucket for each minute.

Pure: time comes with the trades and with the question. Amounts are products of ticks and lots
("tick lots"); one tick lot is ``quote_units_per_tick_lot`` of the instrument. The day begins with
what the candles know of it (``seed``). Trades carry numbers without gaps, so what nobody saw is
known to be missing; it is filled in from the engine's own figures of the UTC day where these
reach, and otherwise said: ``since_ns`` is the first moment that the figures cover.

Invariant: a trade counts once, whether the candles or the engine's ring tell of it or both.
"""

from collections import deque
from dataclasses import dataclass
from operator import mul
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mdgateway.feed.candles import Hole, Known, holes_before
from mdgateway.feed.trade_log import TRADE_LOTS, TRADE_NUMBER, TRADE_PRICE, TRADE_TIME_NS

Rows = npt.NDArray[np.int64]

MINUTE_NS: Final = 60 * 1_000_000_000
WINDOW_MINUTES: Final = 24 * 60
DAY_NS: Final = WINDOW_MINUTES * MINUTE_NS


class Figures(NamedTuple):
    """What was traded in the window; prices are zero when nothing was."""

    lots: int
    tick_lots: int
    high_ticks: int
    low_ticks: int
    average_ticks: int
    """Volume-weighted average price, rounded half up."""
    since_ns: int
    open_ticks: int
    """First price in the window that is known."""
    trade_count: int
    """Trades that are known by number; of those lost over a midnight nobody knows how many."""


class Day(NamedTuple):
    """What an engine itself counted of one UTC day."""

    lots: int
    tick_lots: int
    high_ticks: int
    low_ticks: int
    open_ticks: int


@dataclass(slots=True)
class _Minute:
    number: int
    lots: int = 0
    tick_lots: int = 0
    high_ticks: int = 0
    low_ticks: int = 0
    open_ticks: int = 0
    trade_count: int = 0

    def add_prices(self, open_ticks: int, high_ticks: int, low_ticks: int) -> None:
        self.open_ticks = self.open_ticks or open_ticks
        self.high_ticks = max(self.high_ticks, high_ticks)
        self.low_ticks = min(self.low_ticks, low_ticks) if self.low_ticks else low_ticks


class RollingDay:
    """The minutes of the last 24 hours; at most 1,441 of them are kept."""

    def __init__(self) -> None:
        self.last_number = 0
        """Number of the newest trade that is counted, or known to be missing."""
        self._last_time_ns = 0
        self._minutes: deque[_Minute] = deque()
        self._lots = 0
        self._tick_lots = 0
        self._trade_count = 0
        self._since_ns = 0
        self._holes: list[Hole] = []
        """What is missing and was not looked for yet in the engine's figures."""
        self._filled: tuple[int, int] | None = None
        """Trades from the first to the second moment are all in the minute of the first."""
        self._day = 0
        self._day_lots = 0
        self._day_tick_lots = 0

    def seed(self, known: Known) -> None:
        """Begin with what is known of trades that were told before."""
        for candle in known.minutes:
            minute = self._count(candle.start_ns // MINUTE_NS, candle.lots, candle.tick_lots)
            minute.add_prices(candle.open_ticks, candle.high_ticks, candle.low_ticks)
            self._count_trades(minute, candle.trade_count)
            self._count_day(candle.start_ns, candle.lots, candle.tick_lots)
        self._holes = list(known.holes)
        self.last_number, self._last_time_ns = known.last_trade_number, known.last_time_ns

    def add(self, rows: Rows) -> None:
        """Count trades in rows of ``trade_log``, oldest first; known ones are passed over.

        A trade that claims an older moment than the one before it counts at the newest moment
        seen, as it does in candles.
        """
        rows = rows[rows[:, TRADE_NUMBER] > self.last_number]
        if not len(rows):
            return
        self._holes += holes_before(rows, self.last_number, self._last_time_ns)
        times_ns = np.maximum.accumulate(np.maximum(rows[:, TRADE_TIME_NS], self._last_time_ns))
        minutes = times_ns // MINUTE_NS
        edges = (np.flatnonzero(np.diff(minutes)) + 1).tolist()
        for start, end in zip([0, *edges], [*edges, len(rows)], strict=True):
            prices = rows[start:end, TRADE_PRICE].tolist()
            lots = rows[start:end, TRADE_LOTS].tolist()
            tick_lots = sum(map(mul, prices, lots))
            minute = self._count(int(minutes[start]), sum(lots), tick_lots)
            minute.add_prices(prices[0], max(prices), min(prices))
            self._count_trades(minute, end - start)
            self._count_day(int(times_ns[start]), sum(lots), tick_lots)
        self.last_number, self._last_time_ns = int(rows[-1, TRADE_NUMBER]), int(times_ns[-1])

    def reconcile(self, trade_count: int, last_time_ns: int, day: Day) -> None:
        """Fill in what is missing from the engine's figures of the UTC day of its last trade.

        Call it when every trade up to number `trade_count`, of the moment `last_time_ns`, that can
        still be had was added.
        """
        if trade_count > self.last_number:
            hole = Hole(self.last_number + 1, trade_count, self._last_time_ns, last_time_ns)
            self._holes.append(hole)
            self.last_number = trade_count
            self._last_time_ns = max(self._last_time_ns, last_time_ns)
        if not self._holes:
            return
        self._enter(last_time_ns // DAY_NS)
        self._fill(last_time_ns // DAY_NS * DAY_NS, day)
        self._holes = []

    def _fill(self, begin_ns: int, day: Day) -> None:
        """Lay what the engine counted of a day beyond what was counted here into its holes."""
        missing_lots = day.lots - self._day_lots
        for hole in self._holes:
            if missing_lots <= 0 or hole.to_ns < begin_ns:
                self._since_ns = max(self._since_ns, hole.to_ns)
            elif hole.from_ns < begin_ns:
                # What was lost before midnight is in nobody's figures any more.
                self._since_ns = max(self._since_ns, begin_ns)
        holes = [hole for hole in self._holes if hole.to_ns >= begin_ns]
        if missing_lots <= 0 or not holes:
            return
        first_ns = min(hole.from_ns for hole in holes)
        start_ns = max(first_ns, begin_ns)
        missing_tick_lots = day.tick_lots - self._day_tick_lots
        minute = self._count(start_ns // MINUTE_NS, missing_lots, missing_tick_lots)
        minute.add_prices(minute.open_ticks, day.high_ticks, day.low_ticks)
        if first_ns < begin_ns:
            # Only then is the day's first price that of the missing part.
            minute.open_ticks = day.open_ticks
        self._count_trades(minute, sum(one.trade_count for one in holes if one.from_ns >= begin_ns))
        self._day_lots, self._day_tick_lots = day.lots, day.tick_lots
        end_ns = max(hole.to_ns for hole in holes)
        older = self._filled or (start_ns, end_ns)
        self._filled = (min(start_ns, older[0]), max(end_ns, older[1]))

    def figures(self, now_ns: int) -> Figures:
        """Return the figures of the 24 hours that end with the minute of `now_ns`."""
        first = now_ns // MINUTE_NS - WINDOW_MINUTES + 1
        while self._minutes and self._minutes[0].number < first:
            self._drop_oldest()
        since_ns = max(first * MINUTE_NS, self._since_ns)
        if self._filled and self._filled[0] // MINUTE_NS < first:
            since_ns = max(since_ns, self._filled[1])
        highs = [minute.high_ticks for minute in self._minutes if minute.high_ticks]
        lows = [minute.low_ticks for minute in self._minutes if minute.low_ticks]
        average = (2 * self._tick_lots + self._lots) // (2 * self._lots) if self._lots else 0
        return Figures(
            self._lots,
            self._tick_lots,
            max(highs, default=0),
            min(lows, default=0),
            average,
            since_ns,
            next((minute.open_ticks for minute in self._minutes if minute.open_ticks), 0),
            self._trade_count,
        )

    def _count(self, number: int, lots: int, tick_lots: int) -> _Minute:
        """Add to a minute and return it, created in its place; one before the newest is rare."""
        at = len(self._minutes)
        while at and self._minutes[at - 1].number > number:
            at -= 1
        if not at or self._minutes[at - 1].number != number:
            self._minutes.insert(at, _Minute(number))
            at += 1
        minute = self._minutes[at - 1]
        minute.lots += lots
        minute.tick_lots += tick_lots
        self._lots += lots
        self._tick_lots += tick_lots
        newest = self._minutes[-1].number
        while self._minutes[0].number < newest - WINDOW_MINUTES:
            self._drop_oldest()
        return minute

    def _count_trades(self, minute: _Minute, trade_count: int) -> None:
        minute.trade_count += trade_count
        self._trade_count += trade_count

    def _drop_oldest(self) -> None:
        gone = self._minutes.popleft()
        self._lots -= gone.lots
        self._tick_lots -= gone.tick_lots
        self._trade_count -= gone.trade_count

    def _count_day(self, time_ns: int, lots: int, tick_lots: int) -> None:
        self._enter(time_ns // DAY_NS)
        self._day_lots += lots
        self._day_tick_lots += tick_lots

    def _enter(self, day: int) -> None:
        if day != self._day:
            self._day, self._day_lots, self._day_tick_lots = day, 0, 0
