"""Figures of the last 24 hours from trades, in integers, a bucket for each minute.

Pure: time comes with the trades and with the question. Amounts are products of ticks and lots
("tick lots"); one tick lot is ``quote_units_per_tick_lot`` of the instrument. What was not seen
(before the start, or lost) is filled in from the engine's own figures of the UTC day where these
reach, and otherwise said: ``since_ns`` is the first moment that the figures cover.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final, NamedTuple

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
    """Trades that were counted one by one; those filled in from the engine's figures are not."""


@dataclass(slots=True)
class _Minute:
    number: int
    lots: int = 0
    tick_lots: int = 0
    high_ticks: int = 0
    low_ticks: int = 0
    open_ticks: int = 0
    trade_count: int = 0

    def add(
        self,
        lots: int,
        tick_lots: int,
        high_ticks: int,
        low_ticks: int,
        open_ticks: int,
        trade_count: int,
    ) -> None:
        self.open_ticks = self.open_ticks or open_ticks
        self.trade_count += trade_count
        self.lots += lots
        self.tick_lots += tick_lots
        self.high_ticks = max(self.high_ticks, high_ticks)
        self.low_ticks = min(self.low_ticks, low_ticks) if self.low_ticks else low_ticks


class RollingDay:
    """The minutes of the last 24 hours; at most 1,441 of them are kept."""

    def __init__(self) -> None:
        self._minutes: deque[_Minute] = deque()
        self._lots = 0
        self._tick_lots = 0
        self._trade_count = 0
        self._since_ns = 0
        self._first_seen_ns = 0
        self._reconciled_ns = 0
        self._hole: tuple[int, int] | None = None
        """Trades from the first to the second moment are all in the minute of the first."""
        self._day = 0
        self._day_lots = 0
        self._day_tick_lots = 0

    def add(self, times_ns: Sequence[int], prices: Sequence[int], lots: Sequence[int]) -> None:
        """Count trades, oldest first; all three sequences are equally long."""
        start = 0
        while start < len(times_ns):
            minute = times_ns[start] // MINUTE_NS
            end = start + 1
            while end < len(times_ns) and times_ns[end] // MINUTE_NS == minute:
                end += 1
            run_prices, run_lots = prices[start:end], lots[start:end]
            tick_lots = sum(map(mul, run_prices, run_lots))
            prices_of = max(run_prices), min(run_prices), run_prices[0]
            self._count(minute, sum(run_lots), tick_lots, *prices_of, len(run_lots))
            self._count_day(times_ns[start], sum(run_lots), tick_lots)
            start = end
        if times_ns and not self._first_seen_ns:
            self._first_seen_ns = times_ns[0]

    def reconcile(
        self,
        now_ns: int,
        last_time_ns: int,
        day_lots: int,
        day_tick_lots: int,
        high: int,
        low: int,
        open_ticks: int,
    ) -> None:
        """Fill in what the engine's figures of its day have beyond what was counted of that day.

        Call it when every trade up to `last_time_ns` that can still be had was added. The first
        call fills in the day so far; a later one what was lost since the call before.
        """
        day = last_time_ns // DAY_NS
        self._enter(day)
        first = not self._reconciled_ns
        begin_ns = day * DAY_NS if first else max(self._reconciled_ns, day * DAY_NS)
        if first:
            # Beyond the last trade's day nothing is known, unless its trades are still in the ring.
            self._since_ns = min(self._first_seen_ns or begin_ns, begin_ns)
        missing_lots = day_lots - self._day_lots
        if missing_lots > 0:
            missing_tick_lots = day_tick_lots - self._day_tick_lots
            # The day's first price is that of the missing part only if that part is the first.
            opened = open_ticks if first else 0
            minute = begin_ns // MINUTE_NS
            self._count(minute, missing_lots, missing_tick_lots, high, low, opened, 0)
            self._day_lots, self._day_tick_lots = day_lots, day_tick_lots
            if begin_ns > self._reconciled_ns > 0:
                # What was lost before midnight is in nobody's figures any more.
                self._since_ns = max(self._since_ns, begin_ns)
            end_ns = (self._first_seen_ns or now_ns) if first else now_ns
            older = self._hole or (begin_ns, end_ns)
            self._hole = (min(begin_ns, older[0]), max(end_ns, older[1]))
        self._reconciled_ns = now_ns

    def figures(self, now_ns: int) -> Figures:
        """Return the figures of the 24 hours that end with the minute of `now_ns`."""
        first = now_ns // MINUTE_NS - WINDOW_MINUTES + 1
        while self._minutes and self._minutes[0].number < first:
            self._drop_oldest()
        start_ns = first * MINUTE_NS
        since_ns = max(start_ns, self._since_ns)
        if self._hole and self._hole[0] // MINUTE_NS < first:
            since_ns = max(since_ns, self._hole[1])
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

    def _count(
        self,
        number: int,
        lots: int,
        tick_lots: int,
        high: int,
        low: int,
        open_ticks: int,
        trade_count: int,
    ) -> None:
        """Add to the minute, creating it in its place; a time before the newest is rare."""
        at = len(self._minutes)
        while at and self._minutes[at - 1].number > number:
            at -= 1
        if not at or self._minutes[at - 1].number != number:
            self._minutes.insert(at, _Minute(number))
            at += 1
        self._minutes[at - 1].add(lots, tick_lots, high, low, open_ticks, trade_count)
        self._trade_count += trade_count
        self._lots += lots
        self._tick_lots += tick_lots
        newest = self._minutes[-1].number
        while self._minutes[0].number < newest - WINDOW_MINUTES:
            self._drop_oldest()

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
