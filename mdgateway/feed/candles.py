"""What the feed asks of candles; who keeps them, and where, is not its business.

A ``CandleSource`` belongs to one pair. It is fed every trade once, in order of its number, by the
publication of the pair, in the process's one thread, and answers from memory at once: what has to
be fetched from a disk is fetched by ``page``, which may wait.
"""

from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mdgateway.feed.trade_log import TRADE_NUMBER, TRADE_TIME_NS

Rows = npt.NDArray[np.int64]


class Interval(IntEnum):
    """Lengths of candles; the numbers are those of the contract."""

    SECOND = 1
    MINUTE = 2
    FIVE_MINUTES = 3
    FIFTEEN_MINUTES = 4
    HOUR = 5
    FOUR_HOURS = 6
    DAY = 7
    WEEK = 8
    """Weeks begin on Monday, 0:00 UTC."""

    @property
    def text(self) -> str:
        """Return the interval as people write it, such as 15m."""
        return _TEXTS[self]

    @property
    def seconds(self) -> int:
        """Return the length."""
        return _SECONDS[self]


_TEXTS = dict(zip(Interval, ("1s", "1m", "5m", "15m", "1h", "4h", "1d", "1w"), strict=True))
_SECONDS = dict(zip(Interval, (1, 60, 300, 900, 3_600, 14_400, 86_400, 604_800), strict=True))


class Candle(NamedTuple):
    """The trades of one interval of time; there is none for a time without trades."""

    start_ns: int
    """First moment, nanoseconds since 1970 UTC."""
    open_ticks: int
    high_ticks: int
    low_ticks: int
    close_ticks: int
    lots: int
    tick_lots: int
    """Sum of price ticks times lots; times ``quote_units_per_tick_lot``: the turnover."""
    trade_count: int
    last_trade_number: int
    closed: bool
    """Whether no further trade can fall into it."""


class CandlePage(NamedTuple):
    """Part of a history, oldest first."""

    candles: tuple[Candle, ...]
    next_to_ns: int
    """What to ask for as `to_ns` to get what was before; zero: there is nothing older."""


class Hole(NamedTuple):
    """Trades that were never seen, and the moments of the trades before and after them."""

    first_trade_number: int
    last_trade_number: int
    from_ns: int
    """Zero: no trade before them was seen."""
    to_ns: int

    @property
    def trade_count(self) -> int:
        """Return how many trades they are."""
        return self.last_trade_number - self.first_trade_number + 1


def holes_before(rows: Rows, last_trade_number: int, last_time_ns: int) -> list[Hole]:
    """Return what is missing among trades in rows of ``trade_log`` that follow a last one."""
    numbers = np.concatenate(([last_trade_number], rows[:, TRADE_NUMBER]))
    times_ns = np.concatenate(([last_time_ns], rows[:, TRADE_TIME_NS]))
    return [
        Hole(
            int(numbers[index]) + 1,
            int(numbers[index + 1]) - 1,
            int(times_ns[index]),
            int(times_ns[index + 1]),
        )
        for index in np.flatnonzero(np.diff(numbers) > 1).tolist()
    ]


class Known(NamedTuple):
    """What a source knows of the trades of more than the last 24 hours."""

    minutes: tuple[Candle, ...]
    """Candles of one minute, oldest first, without those that no trade is known of."""
    holes: tuple[Hole, ...]
    """What is missing in the present history, also longer ago."""
    last_trade_number: int
    last_time_ns: int


class CandleSource(Protocol):
    """The candles of one pair."""

    revision: int
    """Rises whenever any candle changed or was closed."""

    @property
    def history(self) -> int:
        """Rises when the pair begins anew; numbers and candles are of one history."""

    def known(self) -> Known:
        """Return what is known so far; may read a disk, so it is for the start only."""

    def add_trades(self, rows: Rows) -> None:
        """Take fresh trades in rows of ``trade_log``, oldest first, each once.

        Numbers may have holes: what the gateway lost, and what was traded while it was away.
        """

    def forget(self) -> None:
        """Another history took the place of the one that was told: begin without trades."""

    def recent(self, interval: Interval, from_ns: int, limit: int) -> tuple[Candle, ...]:
        """Return the newest `limit` candles that start at `from_ns` or later, oldest first.

        From memory; the newest may still change.
        """

    async def page(self, interval: Interval, from_ns: int, to_ns: int, limit: int) -> CandlePage:
        """Return the newest `limit` candles with from_ns <= start < to_ns, also from the store."""


class CandleSources(Protocol):
    """Makes the source of a pair when the gateway starts."""

    def source_of(self, pair: str) -> CandleSource:
        """Return the pair's source."""
