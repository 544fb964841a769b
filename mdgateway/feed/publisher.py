"""The publication of one pair from its engine's book segment.

Each step judges the engine, drains what was published since, and brings the views up to date.
After a loss or a change of owner nothing is told before the book was copied anew. It does no I/O
beyond the segment.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from exchange import book_layout as layout
from exchange.instrument import Instrument
from exchange.ownership import LayoutMismatch
from mdgateway.book.depth import DepthBook, Snapshot
from mdgateway.book.orders import OrderBook, OrdersAt, order_events
from mdgateway.book.reader import BookReader, EventRun, FeedState, Touch
from mdgateway.config import GatewayConfig
from mdgateway.feed import trade_log as log
from mdgateway.feed.order_log import OrderLog
from mdgateway.feed.publication import DOWN, UNKNOWN_STATE, Publication
from mdgateway.feed.records import NoticeKind
from mdgateway.feed.ticker import Day

Rows = npt.NDArray[np.int64]

DRAINS_PER_STEP: Final = 64
"""A whole ring of 2**18 events is drained in half as many."""
COPIES_REFUSED: Final = 10
"""So many steps in turn must find the engine amid a batch before a copy of few levels is taken: a
subscriber of more levels is told those first, and the rest when the engine rests."""


class Publisher(Publication):
    """Market data of one pair, read from shared memory."""

    def __init__(self, instrument: Instrument, config: GatewayConfig) -> None:
        super().__init__(instrument, config)
        self.reader = BookReader(
            instrument,
            config.segments or None,
            level_capacity=config.level_capacity,
            stale_after_ns=config.stale_after_ms * 1_000_000,
        )
        self.orders = self._order_log = OrderLog(config.order_event_capacity)
        self._order_book = OrderBook()
        self._spare = DepthBook(config.level_capacity)
        self._following = False
        """Whether events apply to `book`; if not it stands still until a copy replaces it."""
        self._touched = False
        """Whether `touch` is of the present owner."""
        self._refused_count = 0
        """Steps in turn in which the engine left no room to copy the whole book."""
        self._cursor = 0
        self._through = 0
        self._reload_reason = ""
        self._lost = 0
        self._status_sequence = 0

    def watched_word(self) -> tuple[int, int] | None:
        """Return address and last value of the touch's version."""
        if self.touch is None or not self.reader.is_open:
            return None
        return self.reader.touch_address(), self.touch.version

    def close(self) -> None:
        """Let go of the segment."""
        self.reader.close()

    def _advance(self) -> int:
        state, fresh = self._follow()
        done = self._enter(state, fresh)
        if not self.reader.is_open or state is FeedState.STARTING:
            return done
        drained = self._drain()
        # A new owner may have come while this one was read; then nothing of it is told.
        state, fresh = self._follow()
        if fresh or state is FeedState.STARTING:
            self._enter(state, fresh)
            return done + drained + 1
        done += drained
        if self._touched and not self._book_suffices():
            done += self._load()
        return done + self._tell(changed=bool(done))

    def _follow(self) -> tuple[FeedState, bool]:
        try:
            state, fresh = self.reader.follow(self._now_ns)
        except (LayoutMismatch, PermissionError) as error:
            self.trouble = str(error)
            return FeedState.WAITING, False
        self.trouble = ""
        return state, fresh

    def _enter(self, state: FeedState, fresh: bool) -> int:
        """Take note of a changed state; tell of it where it is news."""
        if fresh:
            self._following = self._touched = False
            self._through = 0
            self._reload_reason = "restart" if self.epoch else "start"
            # What was seen before is known by trade number and sequence, not by position: a new
            # segment counts its positions from the start.
            self._cursor = self.reader.oldest_event()
            self._forget_orders(0, self._cursor)
        live = state is FeedState.LIVE
        self._set_engine_state(self.reader.engine_state() + 1 if live else UNKNOWN_STATE)
        if state is self.state:
            return int(fresh)
        was_live, self.state = self.state is FeedState.LIVE, state
        if was_live:
            self._announce(NoticeKind.ENGINE_DOWN, DOWN[state])
        elif state is FeedState.LIVE and not fresh and self._following:
            # The same engine beats again: nothing was missed, but silence may have been.
            self._announce(NoticeKind.ENGINE_RESTARTED, "the engine is back; nothing is lost")
            self._reset_views(self.sequence)
        self.revision += 1
        return 1

    def _drain(self) -> int:
        """Take in all events of whole commands; return how many."""
        touch = self.reader.touch()
        if touch is not None:
            self.touch, self._through, self._touched = touch, touch.sequence, True
        if not self._touched:
            return 0
        done = 0
        for _ in range(DRAINS_PER_STEP):
            run = self.reader.events(self._cursor, self._through)
            self._cursor = run.next_position
            done += len(run.rows)
            if run.lost:
                self._lost += run.lost
                self._reload_reason = self._reload_reason or "missed"
                self._following = False
                self._forget_orders(self._order_log.epoch, run.position)
            if len(run.rows):
                self._take(run)
            if run.caught_up:
                break
        else:
            # The engine outruns this process: a copy of the book is the shorter way.
            self._reload_reason = self._reload_reason or "missed"
            self._following = False
        self._order_log.is_whole = run.caught_up
        return done

    def _take(self, run: EventRun) -> None:
        rows = run.rows
        kinds = rows[:, layout.EVENT_VERB] & 0xFF
        about_orders = order_events(rows, run.position)
        self._order_book.apply(about_orders)
        self._order_log.append(about_orders, run.next_position)
        if self._following and self.book is not None:
            self.book.apply(rows, run.position)
        trades = rows[kinds == layout.EVENT_TRADE]
        if len(trades):
            self._take_trade_events(trades)
        for event in rows[kinds == layout.EVENT_STATUS].tolist():
            # A restarted engine says its last events again.
            if event[layout.EVENT_SEQUENCE] > self._status_sequence:
                self._status_sequence = event[layout.EVENT_SEQUENCE]
                status = event[layout.EVENT_COUNT]
                self._announce(NoticeKind.PAIR_STATUS, "the pair's status changed", status)
        self.time_ns = max(self.time_ns, int(rows[-1, layout.EVENT_TIME_NS]))

    def _forget_orders(self, epoch: int, position: int) -> None:
        self._order_book.forget()
        self._order_log.begin(epoch, position)

    def _orders_now(self) -> OrdersAt | None:
        log = self._order_log
        if self.book is None or self.book.event_position != log.position:
            return None
        orders = self._order_book.at_levels(*self.book.top(self.config.full_level_count))
        if orders is None:
            # The levels hold less than the orders known there: one of the two is wrong.
            log.contradiction_count += 1
            self._forget_orders(log.epoch, log.position)
        return orders

    def _take_trade_events(self, events: Rows) -> None:
        rows = np.empty((len(events), log.TRADE_COLUMNS), np.int64)
        rows[:, log.TRADE_NUMBER] = events[:, layout.EVENT_COUNT]
        rows[:, log.TRADE_PRICE] = events[:, layout.EVENT_PRICE]
        rows[:, log.TRADE_LOTS] = events[:, layout.EVENT_LOTS]
        rows[:, log.TRADE_SIDE] = (events[:, layout.EVENT_VERB] >> 8) & 0xFF
        rows[:, log.TRADE_TIME_NS] = events[:, layout.EVENT_TIME_NS]
        rows[:, log.TRADE_SEQUENCE] = events[:, layout.EVENT_SEQUENCE]
        self._take_trades(rows)

    def _book_suffices(self) -> bool:
        """Whether the book knows as many levels as the deepest view shows."""
        if not self._following or self.book is None:
            return False
        return self.book.knows(self._deepest_view())

    def _load(self) -> int:
        """Copy the book and bring it to `_through`; return 1 if that worked."""
        snapshot = self.reader.book_copy()
        self._refused_count = self._refused_count + 1 if snapshot is None else 0
        if self._refused_count >= COPIES_REFUSED and not self._following:
            snapshot = self.reader.depth_copy()
        if snapshot is None or not self._replay(snapshot):
            return 0
        before = self.book
        self.book, self._following = self._spare, True
        self._spare = DepthBook(self.config.level_capacity) if before is None else before
        self._through = max(self._through, snapshot.sequence)
        if self._reload_reason:
            self._tell_reload()
        return 1

    def _replay(self, snapshot: Snapshot) -> bool:
        """Load a copy into the spare book and apply the events between it and the cursor."""
        if snapshot.sequence < self._through and snapshot.event_position > self._cursor:
            # The copy is of another life of the segment than the touch.
            return False
        book = self._spare
        book.load(snapshot)
        while book.event_position < self._cursor:
            run = self.reader.events(book.event_position, self._through)
            if run.lost or not len(run.rows):
                return False
            book.apply(run.rows, run.position)
        return True

    def _tell_reload(self) -> None:
        """Start all views anew after a loss or under a new owner, and say why."""
        reason, lost = self._reload_reason, self._lost
        self._reload_reason, self._lost = "", 0
        if reason != "missed":
            # A replaced segment may count its owners from the start; subscribers see it rise.
            self.epoch = self._order_log.epoch = max(self.epoch + 1, self.reader.epoch)
        assert self.touch is not None
        known = max(self.trade_log.newest, self.rolling.last_number)
        if self.touch.trade_count < known:
            # Another history: nothing of the old one holds.
            self._forget_trades(self.touch.trade_count)
            self._status_sequence = 0
        if reason == "start":
            if self.trade_log.newest < self.touch.trade_count:
                self.trade_log.begin_after(self.touch.trade_count)
        elif reason == "restart":
            self._announce(NoticeKind.ENGINE_RESTARTED, "an engine is back; start anew")
        else:
            self._announce(
                NoticeKind.MISSED,
                "the engine was faster than this server; start anew",
                missed_count=lost,
            )
        if reason != "missed" and self.state is not FeedState.LIVE:
            # What was said of the engine before does not hold for the book of this one.
            self._announce(NoticeKind.ENGINE_DOWN, DOWN[self.state])
        self._reset_views(self._through)

    def _tell(self, changed: bool) -> int:
        if self.book is None or self.touch is None or not self._following:
            return 0
        if self._through != self.sequence or changed:
            self.sequence = self._order_log.sequence = self._through
            self._reconcile(self.touch)
            self._advance_views()
            self.revision += 1
        return 0

    def _reconcile(self, touch: Touch) -> None:
        tick_lots = touch.day_quote_units // self.instrument.quote_units_per_tick_lot
        prices = touch.day_high_ticks, touch.day_low_ticks, touch.day_open_ticks
        day = Day(touch.day_lots, tick_lots, *prices)
        self.rolling.reconcile(touch.trade_count, touch.last_time_ns, day)
