"""One pair's market data between its segment and its subscribers.

``step`` is all that moves: it judges the engine, drains what was published since, and brings the
views up to date with one generation a step, however many events there were. Between steps nothing
changes, so every subscriber of a view is told the same bytes. Subscribers are numbers into shared,
bounded things (a generation of a view, a trade number, a notice number); see ``subscriptions``.

Invariants: what is told is the book as of the end of one command; after a loss or a change of
owner nothing is told before the book was copied anew, and the notice comes before the new copy.
It does no I/O beyond the segment, asks no clock and knows no gRPC.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange import book_layout as layout
from exchange.instrument import Instrument
from exchange.ownership import LayoutMismatch
from exchange.v1 import enums_pb2, market_data_pb2
from mdgateway.book.depth import DepthBook, Snapshot
from mdgateway.book.reader import BookReader, EventRun, FeedState, Touch
from mdgateway.book.view import View
from mdgateway.config import GatewayConfig
from mdgateway.feed import messages
from mdgateway.feed.messages import Encoder
from mdgateway.feed.ticker import RollingDay
from mdgateway.feed.trade_log import TradeLog

Rows = npt.NDArray[np.int64]

NOTICE_CAPACITY: Final = 64
"""Notices kept for subscribers; one that misses so many is told the newest."""
ENCODED_DEPTHS: Final = 16
"""Answers to GetDepth that are kept until the book changes: one for each depth asked for."""
DRAINS_PER_STEP: Final = 64
"""A whole ring of 2**18 events is drained in half as many."""
UNKNOWN_STATE: Final = 0
"""EngineState of the wire while no engine is live."""


class Numbered(NamedTuple):
    """A notice and its number."""

    number: int
    content: market_data_pb2.Notice


@dataclass(slots=True)
class Channel:
    """A view that subscribers share, and what was encoded of its present generation."""

    view: View
    user_count: int = 0
    encoded: dict[int, bytes] = field(default_factory=dict)
    """By the generation a subscriber holds; `WHOLE`: the snapshot."""


WHOLE: Final = -1


class Publisher:
    """Market data of one pair."""

    def __init__(self, instrument: Instrument, config: GatewayConfig) -> None:
        self.instrument = instrument
        self.config = config
        self.encoder = Encoder(instrument)
        self.reader = BookReader(
            instrument,
            config.segments or None,
            level_capacity=config.level_capacity,
            stale_after_ns=config.stale_after_ms * 1_000_000,
        )
        self.book: DepthBook | None = None
        """The book as of `sequence`; None until a first copy of it could be had."""
        self.state = FeedState.WAITING
        self.epoch = 0
        """Epoch of the engine whose book is told."""
        self.sequence = 0
        self.time_ns = 0
        """Time of the newest event that is included."""
        self.touch: Touch | None = None
        self.history = 0
        """Rises when a segment with fewer trades than were told takes another's place."""
        self.trade_log = TradeLog(config.trade_capacity)
        self.rolling = RollingDay()
        self.notices: deque[Numbered] = deque(maxlen=NOTICE_CAPACITY)
        self.notice_count = 0
        self.revision = 0
        """Rises with every step after which a subscriber may have something to say."""
        self.trouble = ""
        """Why the segment cannot be read although it is there; empty: it can."""
        self.encoded_trades: dict[tuple[int, int, int], bytes] = {}
        """Trade messages of this revision, by epoch, first and last number."""
        self._encoded_ticker = (-1, b"")
        self._encoded_depths: dict[int, bytes] = {}
        self._channels: dict[int, Channel] = {}
        self._spare = DepthBook(config.level_capacity)
        self._following = False
        """Whether events apply to `book`; if not it stands still until a copy replaces it."""
        self._touched = False
        """Whether `touch` is of the present owner."""
        self._cursor = 0
        self._through = 0
        self._reload_reason = ""
        self._lost = 0
        self._status_sequence = 0

    # What subscriptions and calls ask.

    @property
    def ready(self) -> bool:
        """Whether there is a book to tell, be it one that stands still."""
        return self.book is not None

    @property
    def engine_state(self) -> int:
        """EngineState of the wire; unspecified while no engine is live."""
        if self.state is not FeedState.LIVE:
            return UNKNOWN_STATE
        return self.reader.engine_state() + 1

    @property
    def pair_status(self) -> int:
        """PairStatus of the wire; unspecified before anything was read."""
        return self.touch.status if self.touch else 0

    def acquire_channel(self, level_count: int) -> Channel:
        """Return the shared channel of so many levels; give it back with `release_channel`."""
        channel = self._channels.get(level_count)
        if channel is None:
            channel = self._channels[level_count] = Channel(View(level_count))
            channel.view.reset(self.sequence)
            if self.book is not None:
                channel.view.advance(self.book, self.sequence)
        channel.user_count += 1
        return channel

    def release_channel(self, channel: Channel) -> None:
        """Say that one subscriber less uses the channel; the last one takes it away."""
        channel.user_count -= 1
        if not channel.user_count:
            del self._channels[channel.view.level_count]

    def present_notice(self) -> market_data_pb2.Notice | None:
        """Return what a new subscriber has to be told first, if anything."""
        if self.ready and self.state is FeedState.LIVE:
            return None
        return self._notice(market_data_pb2.NOTICE_KIND_ENGINE_DOWN, _DOWN[self.state])

    def missed_notice(self, count: int, message: str) -> market_data_pb2.Notice:
        """Return the notice that so much is missing on one subscriber's stream."""
        return self._notice(market_data_pb2.NOTICE_KIND_MISSED, message, missed_count=count)

    def ticker(self, time_ns: int) -> market_data_pb2.Ticker:
        """Return the present ticker; there must be a touch."""
        assert self.touch is not None
        last = self.trade_log.last()
        if last is not None and last[messages.TRADE_NUMBER] != self.touch.trade_count:
            last = None
        figures = self.rolling.figures(time_ns)
        return self.encoder.ticker(self.epoch, self.touch, figures, last, self.engine_state)

    def encoded_ticker(self, time_ns: int) -> bytes:
        """Return the ticker of this revision as a stream message; encoded once."""
        revision, message = self._encoded_ticker
        if revision != self.revision:
            content = market_data_pb2.StreamTickerResponse(ticker=self.ticker(time_ns))
            message = content.SerializeToString()
            self._encoded_ticker = (self.revision, message)
        return message

    def encoded_depth(self, level_count: int) -> bytes:
        """Return the best levels as the answer to GetDepth; there must be a book."""
        assert self.book is not None
        answer = self._encoded_depths.get(level_count)
        if answer is None:
            if len(self._encoded_depths) >= ENCODED_DEPTHS:
                self._encoded_depths.clear()
            place = self.epoch, self.sequence, self.time_ns
            depth = self.encoder.depth(*place, *self.book.top(level_count))
            answer = market_data_pb2.GetDepthResponse(depth=depth).SerializeToString()
            self._encoded_depths[level_count] = answer
        return answer

    # What moves.

    def step(self, now_ns: int, time_ns: int) -> int:
        """Do what is due; return how much it was (events, copies and changes of state).

        `now_ns` is of the clock the engine beats with (monotonic), `time_ns` of the wall clock.
        Zero means that nothing happened.
        """
        state, fresh = self._follow(now_ns)
        self.encoded_trades.clear()
        done = self._enter(state, fresh)
        if not self.reader.is_open or state is FeedState.STARTING:
            return done
        drained = self._drain()
        # A new owner may have come while this one was read; then nothing of it is told.
        state, fresh = self._follow(now_ns)
        if fresh or state is FeedState.STARTING:
            self._enter(state, fresh)
            return done + drained + 1
        done += drained
        if self._touched and not self._book_suffices():
            done += self._load()
        return done + self._tell(time_ns, changed=bool(done))

    def _follow(self, now_ns: int) -> tuple[FeedState, bool]:
        try:
            state, fresh = self.reader.follow(now_ns)
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
        if state is self.state:
            return int(fresh)
        was_live, self.state = self.state is FeedState.LIVE, state
        if was_live:
            self._announce(market_data_pb2.NOTICE_KIND_ENGINE_DOWN, _DOWN[state])
        elif state is FeedState.LIVE and not fresh and self._following:
            # The same engine beats again: nothing was missed, but silence may have been.
            self._announce(
                market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED, "the engine is back; nothing is lost"
            )
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
            if len(run.rows):
                self._take(run)
            if run.caught_up:
                break
        else:
            # The engine outruns this process: a copy of the book is the shorter way.
            self._reload_reason = self._reload_reason or "missed"
            self._following = False
        return done

    def _take(self, run: EventRun) -> None:
        rows = run.rows
        kinds = rows[:, layout.EVENT_VERB] & 0xFF
        if self._following and self.book is not None:
            self.book.apply(rows, run.position)
        trades = rows[kinds == layout.EVENT_TRADE]
        if len(trades):
            self._take_trades(trades)
        for event in rows[kinds == layout.EVENT_STATUS].tolist():
            # A restarted engine says its last events again.
            if event[layout.EVENT_SEQUENCE] > self._status_sequence:
                self._status_sequence = event[layout.EVENT_SEQUENCE]
                status = event[layout.EVENT_COUNT]
                self._announce(
                    market_data_pb2.NOTICE_KIND_PAIR_STATUS, "the pair's status changed", status
                )
        self.time_ns = max(self.time_ns, int(rows[-1, layout.EVENT_TIME_NS]))

    def _take_trades(self, events: Rows) -> None:
        rows = np.empty((len(events), messages.TRADE_COLUMNS), np.int64)
        rows[:, messages.TRADE_NUMBER] = events[:, layout.EVENT_COUNT]
        rows[:, messages.TRADE_PRICE] = events[:, layout.EVENT_PRICE]
        rows[:, messages.TRADE_LOTS] = events[:, layout.EVENT_LOTS]
        rows[:, messages.TRADE_SIDE] = (events[:, layout.EVENT_VERB] >> 8) & 0xFF
        rows[:, messages.TRADE_TIME_NS] = events[:, layout.EVENT_TIME_NS]
        rows[:, messages.TRADE_SEQUENCE] = events[:, layout.EVENT_SEQUENCE]
        fresh = rows[rows[:, messages.TRADE_NUMBER] > self.trade_log.newest]
        if self.trade_log.append(fresh):
            self.rolling.add(
                fresh[:, messages.TRADE_TIME_NS].tolist(),
                fresh[:, messages.TRADE_PRICE].tolist(),
                fresh[:, messages.TRADE_LOTS].tolist(),
            )

    def _book_suffices(self) -> bool:
        """Whether the book knows as many levels as the deepest view shows."""
        deepest = max(self._channels, default=1)
        return self._following and self.book is not None and self.book.knows(deepest)

    def _load(self) -> int:
        """Copy the book and bring it to `_through`; return 1 if that worked."""
        snapshot = self.reader.book_copy()
        if snapshot is None and not self._following:
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
            self.epoch = max(self.epoch + 1, self.reader.epoch)
        assert self.touch is not None
        if self.touch.trade_count < self.trade_log.newest:
            # Another history: nothing of the old one holds.
            self.trade_log.begin_after(self.touch.trade_count)
            self.rolling = RollingDay()
            self.history += 1
            self._status_sequence = 0
        if reason == "start":
            if self.trade_log.newest < self.touch.trade_count:
                self.trade_log.begin_after(self.touch.trade_count)
        elif reason == "restart":
            self._announce(
                market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED, "an engine is back; start anew"
            )
        else:
            self._announce(
                market_data_pb2.NOTICE_KIND_MISSED,
                "the engine was faster than this server; start anew",
                missed_count=lost,
            )
        self._reset_views(self._through)

    def _reset_views(self, sequence: int) -> None:
        for channel in self._channels.values():
            channel.view.reset(sequence)
            channel.encoded.clear()

    def _tell(self, time_ns: int, changed: bool) -> int:
        if self.book is None or self.touch is None or not self._following:
            return 0
        if self._through != self.sequence or changed:
            self.sequence = self._through
            worth = self.instrument.quote_units_per_tick_lot
            touch = self.touch
            self.rolling.reconcile(
                time_ns,
                touch.last_time_ns,
                touch.day_lots,
                touch.day_quote_units // worth,
                touch.day_high_ticks,
                touch.day_low_ticks,
            )
            for channel in self._channels.values():
                channel.view.advance(self.book, self.sequence)
                channel.encoded.clear()
            self._encoded_depths.clear()
            self.revision += 1
        return 0

    def _announce(
        self, kind: int, message: str, status: int | None = None, missed_count: int = 0
    ) -> None:
        content = self._notice(kind, message, status, missed_count)
        self.notice_count += 1
        self.notices.append(Numbered(self.notice_count, content))
        self.revision += 1

    def _notice(
        self, kind: int, message: str, status: int | None = None, missed_count: int = 0
    ) -> market_data_pb2.Notice:
        shown = self.pair_status if status is None else status
        return market_data_pb2.Notice(
            kind=market_data_pb2.NoticeKind.ValueType(kind),
            epoch=self.epoch,
            engine_state=enums_pb2.EngineState.ValueType(self.engine_state),
            status=enums_pb2.PairStatus.ValueType(shown),
            missed_count=missed_count,
            message=message,
        )


_DOWN: Final = {
    FeedState.WAITING: "there is no engine yet",
    FeedState.STARTING: "an engine is starting; data stand still",
    FeedState.LIVE: "the book is being read; data come soon",
    FeedState.STALE: "the engine is silent; data stand still",
    FeedState.CLOSED: "the engine stopped in good order; data stand still",
}
