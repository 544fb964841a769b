"""The candles of a running gateway: in memory for whoever follows, in the store for ever.

A ``PairCandles`` counts every trade once, at once and in memory; the ``CandleKeeper`` writes what
changed once a second, in a thread. What a crash takes is at most a second, and the engine's ring
gives those trades again. A store that cannot write (disk full) is said once and tried again, less
and less often, because each try prepares all that waits; the candles in memory go on, and of those
that wait to be written the oldest become holes.

Invariants: a trade that was counted is never counted again, also over restarts; missing trade
numbers are kept as holes, which ``backfill`` can close.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt

from mdgateway.feed.candles import (
    Candle,
    CandlePage,
    Hole,
    Interval,
    Known,
    holes_before,
)
from mdgateway.feed.trade_log import TRADE_NUMBER, TRADE_TIME_NS
from mdgateway.history.rollup import SECOND_NS, Series, candles_of_seconds, end_of
from mdgateway.history.store import SECONDS_KEPT_NS, CandleStore, Change, Position
from mdgateway.history.unwritten import UNWRITTEN_SECONDS, Unwritten

Rows = npt.NDArray[np.int64]

MEMORY_CANDLES: Final = 1_500
"""Candles of each interval in memory; a client's first page never reads a disk, and the minutes
reach over the last 24 hours."""
TICK_S: Final = 1.0
LONGEST_PAUSE_TICKS: Final = 8
"""Between two tries of a store that cannot write: also how late it is heard that it can again."""
SETTLED_NS: Final = 5 * SECOND_NS
"""A trade's time is stamped before it is synced and told; later than this none comes."""
_PRUNE_EVERY: Final = 3_600
"""Writes between two removals of old seconds."""

log = logging.getLogger(__name__)


class PairCandles:
    """The candles of one pair (``mdgateway.feed.candles.CandleSource``)."""

    def __init__(self, pair: str, store: CandleStore | None) -> None:
        """Begin with what the store has of the pair. Raises StoreUnusable."""
        self.pair = pair
        self.revision = 0
        self._store = store
        self._position = Position()
        candles: Mapping[Interval, list[Candle]] = {}
        if store is not None:
            self._position, candles = store.load(pair, MEMORY_CANDLES)
        self._series = {interval: Series(interval, MEMORY_CANDLES) for interval in Interval}
        for interval, series in self._series.items():
            series.load(candles.get(interval, ()))
        self._closed_before_ns = self._position.last_time_ns
        self._unwritten = Unwritten(self._position)

    @property
    def history(self) -> int:
        """Return the number of the history that the candles are of."""
        return self._position.history

    def known(self) -> Known:
        """Return what is known so far; reads the store, if there is one."""
        stored = self._store.holes(self.pair) if self._store is not None else ()
        return Known(
            minutes=tuple(self._series[Interval.MINUTE].between(0, 1 << 62, MEMORY_CANDLES)),
            holes=(*stored, *self._unwritten.holes),
            last_trade_number=self._position.last_trade_number,
            last_time_ns=self._position.last_time_ns,
        )

    def add_trades(self, rows: Rows) -> None:
        """Take trades in rows of ``trade_log``, oldest first; known ones are passed over."""
        rows = self._fresh(rows)
        if not len(rows):
            return
        _, last_number, last_ns = self._position
        self._unwritten.holes += holes_before(rows, last_number, last_ns)
        for piece in candles_of_seconds(rows, last_ns):
            for interval, series in self._series.items():
                self._unwritten.add(interval, series.lay(piece))
        last_ns = max(last_ns, int(rows[:, TRADE_TIME_NS].max()))
        self._position = Position(self._position.history, int(rows[-1, TRADE_NUMBER]), last_ns)
        self._closed_before_ns = max(self._closed_before_ns, last_ns)
        self.revision += 1

    def _fresh(self, rows: Rows) -> Rows:
        known = rows[rows[:, TRADE_NUMBER] <= self._position.last_trade_number]
        if len(known) and int(known[-1, TRADE_TIME_NS]) > self._position.last_time_ns:
            # Low numbers at a later time: the pair began anew while nobody looked.
            self.forget()
        return rows[rows[:, TRADE_NUMBER] > self._position.last_trade_number]

    def forget(self) -> None:
        """Begin another history without trades; the old one stays in the store."""
        self._position = Position(self._position.history + 1)
        for series in self._series.values():
            series.load(())
        self._unwritten = Unwritten(self._position)
        self._closed_before_ns = 0
        self.revision += 1

    def close_before(self, time_ns: int) -> None:
        """Say that no trade from before this moment comes any more."""
        before = self._closed_before_ns
        if time_ns <= before:
            return
        self._closed_before_ns = time_ns
        for interval, series in self._series.items():
            newest = series.newest()
            if newest and before < end_of(interval, newest.start_ns) <= time_ns:
                self.revision += 1

    def recent(self, interval: Interval, from_ns: int, limit: int) -> tuple[Candle, ...]:
        """Return the newest `limit` candles that start at `from_ns` or later, from memory."""
        return self._said(interval, self._series[interval].between(from_ns, 1 << 62, limit))

    async def page(self, interval: Interval, from_ns: int, to_ns: int, limit: int) -> CandlePage:
        """Return the newest `limit` candles with from_ns <= start < to_ns, also from the store."""
        series = self._series[interval]
        # One more than asked for says whether there is anything older.
        found = series.between(from_ns, to_ns, limit + 1)
        if self._store is not None and len(found) <= limit and series.is_full:
            oldest_ns = series.oldest_start_ns
            history, wanted = self._position.history, limit + 1 - len(found)
            span = from_ns, min(to_ns, oldest_ns), wanted
            older = await asyncio.to_thread(self._store.page, self.pair, history, interval, *span)
            found = older + found
        next_to_ns = found[-limit].start_ns if len(found) > limit else 0
        return CandlePage(self._said(interval, found[-limit:]), next_to_ns)

    def _said(self, interval: Interval, candles: list[Candle]) -> tuple[Candle, ...]:
        before = self._closed_before_ns
        return tuple(
            candle._replace(closed=end_of(interval, candle.start_ns) <= before)
            for candle in candles
        )

    def take_change(self) -> Change | None:
        """Return what the store does not know yet, and consider it known."""
        return self._unwritten.take(self._position)

    def give_back(self, change: Change) -> Hole | None:
        """Take back what could not be written, unless it is of a history that is over.

        Return what there was no room for since the store last wrote; None: nothing.
        """
        if change.position.history == self._position.history:
            self._unwritten.give_back(change)
        return self._unwritten.given_up

    def written(self) -> Hole | None:
        """Hear that the store wrote what was taken; return what there had been no room for."""
        given_up, self._unwritten.given_up = self._unwritten.given_up, None
        return given_up


class CandleKeeper:
    """All pairs' candles (``mdgateway.feed.candles.CandleSources``), and who writes them."""

    def __init__(self, store: CandleStore | None, clock: Callable[[], int] = time.time_ns) -> None:
        """Keep candles in a store; without one, the newest of them in memory only."""
        self._store = store
        self._clock = clock
        self._pairs: dict[str, PairCandles] = {}
        self._write_count = 0
        self._pause_ticks = 1
        """Between the last write and the next one."""
        self._ticks_left = 1
        self.trouble = ""
        """Why candles cannot be written; empty: they can."""
        self._told: set[str] = set()
        """Pairs of which the log says that the oldest are given up."""

    def source_of(self, pair: str) -> PairCandles:
        """Return the pair's candles, with what the store has of them. Raises StoreUnusable."""
        if pair not in self._pairs:
            self._pairs[pair] = PairCandles(pair, self._store)
        return self._pairs[pair]

    async def run(self) -> None:
        """Write what changed, a tick each second, until cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                await self.tick()
        finally:
            await asyncio.shield(self.write())
            if self._store is not None:
                self._store.close()

    async def tick(self) -> None:
        """Do what is due each second: close candles, and write unless the store is to be spared."""
        for candles in self._pairs.values():
            candles.close_before(self._clock() - SETTLED_NS)
        self._ticks_left -= 1
        if not self._ticks_left:
            await self.write()
            self._ticks_left = self._pause_ticks

    async def write(self) -> None:
        """Write what changed; what cannot be written is kept for the next time."""
        changes = {}
        for pair, candles in self._pairs.items():
            change = candles.take_change()
            if change is not None:
                changes[pair] = change
        if not changes or self._store is None:
            return
        try:
            await asyncio.to_thread(self._write, self._store, changes)
        except duckdb.Error as error:
            if not self.trouble:
                log.error("candles cannot be written, they stay in memory: %s", error)
            self.trouble = str(error)
            self._pause_ticks = min(2 * self._pause_ticks, LONGEST_PAUSE_TICKS)
            for pair, change in changes.items():
                self._tell_given_up(pair, self._pairs[pair].give_back(change))
            return
        if self.trouble:
            log.info("candles can be written again")
        self.trouble, self._pause_ticks = "", 1
        self._told.clear()
        for pair in changes:
            hole = self._pairs[pair].written()
            if hole is not None:
                numbers = hole.first_trade_number, hole.last_trade_number
                log.warning("%s: trades %d to %d were not written; fill them in", pair, *numbers)

    def _tell_given_up(self, pair: str, hole: Hole | None) -> None:
        if hole is None or pair in self._told:
            return
        self._told.add(pair)
        text = "%s: over %d seconds wait to be written; the oldest become a hole from trade %d on"
        log.error(text, pair, UNWRITTEN_SECONDS, hole.first_trade_number)

    def _write(self, store: CandleStore, changes: dict[str, Change]) -> None:
        store.write(changes)
        self._write_count += 1
        if self._write_count % _PRUNE_EVERY == 1:
            store.forget_seconds_before(self._clock() - SECONDS_KEPT_NS)
