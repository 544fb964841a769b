"""What the store does not know yet of one pair; bounded also while nothing can be written.

While the store writes what was taken, the next is gathered; what could not be written comes back.
Of more than ``UNWRITTEN_SECONDS`` the oldest are given up: they become a hole, as after a restart,
which ``backfill`` can close.

Invariant: every trade after the last one that the store has is in a second here or in a hole. A
hole that was given up ends with a whole minute, so that minutes and holes do not overlap.
"""

from typing import Final

from mdgateway.feed.candles import Candle, Hole, Interval
from mdgateway.history.rollup import SECOND_NS, end_of, start_of
from mdgateway.history.store import Change, Position

UNWRITTEN_SECONDS: Final = 3_600
"""Seconds with trades of one pair that wait for the store, with the longer candles over them."""


class Unwritten:
    """Candles and holes of one pair that are to be written."""

    def __init__(self, written: Position) -> None:
        """Begin where the store is."""
        self._written = written
        self._candles: dict[tuple[Interval, int], Candle] = {}
        self.holes: list[Hole] = []
        self.given_up: Hole | None = None
        """What there was no room for since the store last wrote; None: nothing."""

    def add(self, interval: Interval, candle: Candle) -> None:
        """Take a candle as it is now."""
        self._candles[interval, candle.start_ns] = candle

    def take(self, position: Position) -> Change | None:
        """Return all of it, which reaches to a position, and consider it written."""
        if not self._candles:
            return None
        change = Change(position, self._candles, self.holes, self._written)
        self._written, self._candles, self.holes = position, {}, []
        return change

    def give_back(self, change: Change) -> None:
        """Take back what could not be written."""
        self._written = change.since
        self._candles = {**change.candles, **self._candles}
        self.holes = [*change.holes, *self.holes]
        seconds = sorted(start for interval, start in self._candles if interval is Interval.SECOND)
        if len(seconds) > UNWRITTEN_SECONDS:
            # Up to a whole minute: what is kept may be less than the limit.
            last_before_ns = seconds[-UNWRITTEN_SECONDS] - SECOND_NS
            minute_ns = start_of(Interval.MINUTE, last_before_ns)
            self._give_up_before(end_of(Interval.MINUTE, minute_ns))

    def _give_up_before(self, moment_ns: int) -> None:
        gone = {key for key in self._candles if end_of(*key) <= moment_ns}
        last = max(self._candles[key].last_trade_number for key in gone)
        for key in gone:
            del self._candles[key]
        to_ns = min(start for interval, start in self._candles if interval is Interval.SECOND)
        later = []
        for hole in self.holes:
            if hole.first_trade_number > last + 1:
                later.append(hole)
            else:
                last, to_ns = max(last, hole.last_trade_number), max(to_ns, hole.to_ns)
        first, from_ns = self._written.last_trade_number + 1, self._written.last_time_ns
        self.given_up = Hole(first, last, from_ns, to_ns)
        self.holes = [self.given_up, *later]
