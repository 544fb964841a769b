"""Candles from trades, in integers: the pure part.

Trades become candles of one second, and these are laid onto the candle that is open in each
interval. Time never goes back in an engine's log; a trade that claims an older moment than the one
before it (a clock that was set back between two engines) is counted at the newest moment seen.

Invariants: a candle's figures are those of a plain recomputation from its trades; a trade counts
in exactly one candle of each interval. No clock and no I/O here.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from mdgateway.feed.candles import Candle, Interval
from mdgateway.feed.trade_log import TRADE_LOTS, TRADE_NUMBER, TRADE_PRICE, TRADE_TIME_NS

Rows = npt.NDArray[np.int64]

SECOND_NS: Final = 1_000_000_000
_FIRST_MONDAY_NS: Final = 4 * 86_400 * SECOND_NS
"""1970-01-05, 0:00 UTC: where weeks are counted from."""


def offset_ns(interval: Interval) -> int:
    """Return a moment at which a candle of this interval begins."""
    return _FIRST_MONDAY_NS if interval is Interval.WEEK else 0


def start_of(interval: Interval, time_ns: int) -> int:
    """Return the first moment of the candle that a moment falls into."""
    length_ns, offset = interval.seconds * SECOND_NS, offset_ns(interval)
    return (time_ns - offset) // length_ns * length_ns + offset


def end_of(interval: Interval, start_ns: int) -> int:
    """Return the first moment after a candle."""
    return start_ns + interval.seconds * SECOND_NS


def merged(first: Candle, then: Candle) -> Candle:
    """Return one candle of two of the same interval, of which the second traded later."""
    return Candle(
        start_ns=first.start_ns,
        open_ticks=first.open_ticks,
        high_ticks=max(first.high_ticks, then.high_ticks),
        low_ticks=min(first.low_ticks, then.low_ticks),
        close_ticks=then.close_ticks,
        lots=first.lots + then.lots,
        tick_lots=first.tick_lots + then.tick_lots,
        trade_count=first.trade_count + then.trade_count,
        last_trade_number=then.last_trade_number,
        closed=False,
    )


def candles_of_seconds(rows: Rows, not_before_ns: int = 0) -> Iterator[Candle]:
    """Yield the candles of one second that trades (rows of ``trade_log``) make, oldest first.

    Moments before `not_before_ns` count as that one.
    """
    if not len(rows):
        return
    times_ns = np.maximum.accumulate(np.maximum(rows[:, TRADE_TIME_NS], not_before_ns))
    seconds = times_ns // SECOND_NS
    edges = (np.flatnonzero(np.diff(seconds)) + 1).tolist()
    for start, end in zip([0, *edges], [*edges, len(rows)], strict=True):
        prices = rows[start:end, TRADE_PRICE].tolist()
        lots = rows[start:end, TRADE_LOTS].tolist()
        yield Candle(
            start_ns=int(seconds[start]) * SECOND_NS,
            open_ticks=prices[0],
            high_ticks=max(prices),
            low_ticks=min(prices),
            close_ticks=prices[-1],
            lots=sum(lots),
            # In whole numbers of any size: a week of a wild market is beyond 64 bits.
            tick_lots=sum(map(int.__mul__, prices, lots)),
            trade_count=end - start,
            last_trade_number=int(rows[end - 1, TRADE_NUMBER]),
            closed=False,
        )


class Series:
    """The newest candles of one interval, oldest first; at most `capacity` of them."""

    def __init__(self, interval: Interval, capacity: int) -> None:
        self.interval = interval
        self._capacity = capacity
        self._candles: dict[int, Candle] = {}
        """By first moment, in order of it."""

    def load(self, candles: Iterable[Candle]) -> None:
        """Begin with these, oldest first."""
        self._candles = {candle.start_ns: candle for candle in candles}
        self._cut()

    def lay(self, piece: Candle) -> Candle:
        """Lay a later piece onto the candle it falls into; return that candle."""
        start_ns = start_of(self.interval, piece.start_ns)
        before = self._candles.get(start_ns)
        candle = merged(before, piece) if before else piece._replace(start_ns=start_ns)
        self._candles[start_ns] = candle
        self._cut()
        return candle

    def newest(self) -> Candle | None:
        """Return the newest candle."""
        return next(reversed(self._candles.values()), None)

    @property
    def oldest_start_ns(self) -> int:
        """Return the first moment of the oldest candle here; zero: there is none."""
        return next(iter(self._candles), 0)

    @property
    def is_full(self) -> bool:
        """Whether candles may have been dropped that were older than the oldest here."""
        return len(self._candles) >= self._capacity

    def between(self, from_ns: int, to_ns: int, limit: int) -> list[Candle]:
        """Return the newest `limit` candles with from_ns <= start < to_ns, oldest first."""
        found: list[Candle] = []
        for start_ns in reversed(self._candles):
            if start_ns < from_ns or len(found) == limit:
                break
            if start_ns < to_ns:
                found.append(self._candles[start_ns])
        found.reverse()
        return found

    def _cut(self) -> None:
        while len(self._candles) > self._capacity:
            del self._candles[next(iter(self._candles))]
