"""One pair as it is told: what every source fills and every door reads.

A *source* (``publisher``: the engine's segment; ``relay``: another gateway) brings a publication
up to date in ``step``, with one generation of each view a step, however much happened. Between
steps nothing changes. *Doors* (gRPC, WebSocket, REST) open subscriptions (``subscriptions``) to it
through the ``market`` of the process, or ask for single records: ``ticker``, ``snapshot``,
``pair_state``, ``trade_log``, ``candles``. A subscriber is a few numbers into shared, bounded
things: a generation of a view, a trade number, a notice number, a revision.

What is told is a record (``records``); each is encoded once for each format however many are told
it: ``encoded(format, topic, key, make)``. A format is any callable that makes an ``Encoder`` for an
instrument, such as ``protobuf.ProtobufEncoder``; nobody registers anything.

Invariants: what is told is the book as of the end of one command; after a loss or a change of
owner nothing is told before the book was taken anew, and the notice comes before the new content.
No I/O here, no clock, no wire.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange.instrument import Instrument
from mdgateway.book.checksum import depth_checksum
from mdgateway.book.depth import DepthBook
from mdgateway.book.orders import OrdersAt
from mdgateway.book.reader import FeedState, Touch
from mdgateway.book.view import View
from mdgateway.config import GatewayConfig
from mdgateway.feed import trade_log as log
from mdgateway.feed.candles import CandleSource
from mdgateway.feed.order_log import OrderLog, OrderSnapshot
from mdgateway.feed.records import (
    FULL,
    DepthSnapshot,
    Encoder,
    Format,
    Notice,
    NoticeKind,
    PairState,
    Record,
    TickerState,
    Topic,
)
from mdgateway.feed.ticker import Figures, RollingDay
from mdgateway.feed.trade_log import TradeLog

Rows = npt.NDArray[np.int64]

NOTICE_CAPACITY: Final = 64
"""Notices kept for subscribers; one that misses so many is told the newest."""
ENCODED_LIMIT_BYTES: Final = 16 << 20
"""Encodings kept between two steps; what is beyond is encoded again for who asks."""
FULL_LIFE_NS: Final = 500_000_000
"""How long a snapshot of every level, which may take tens of milliseconds to encode, is given to
newcomers; what changed since follows it at once."""
UNKNOWN_STATE: Final = 0
"""EngineState of the wire while no engine is live."""


class Numbered(NamedTuple):
    """A notice and its number."""

    number: int
    content: Notice


@dataclass(slots=True)
class SharedView:
    """A view that subscribers share; kept for a while without any, for those who come back."""

    view: View
    user_count: int = 0
    idle_since_ns: int = 0


class Kept(NamedTuple):
    """An encoded snapshot of every level, and which moment of its view it is of."""

    made_ns: int
    epoch: int
    generation: int
    sequence: int
    content: bytes


class Publication:
    """Market data of one pair."""

    def __init__(self, instrument: Instrument, config: GatewayConfig) -> None:
        self.instrument = instrument
        self.pair = instrument.pair
        self.config = config
        self.book: DepthBook | None = None
        """The book as of `sequence`; None until a first copy of it could be had."""
        self.state = FeedState.WAITING
        self.engine_state = UNKNOWN_STATE
        """EngineState of the wire; unspecified while no engine is live."""
        self.epoch = 0
        """Epoch of the engine whose book is told."""
        self.sequence = 0
        self.time_ns = 0
        """Time of the newest event that is included."""
        self.wall_ns = 0
        """Wall clock of the last step."""
        self.touch: Touch | None = None
        self.history = 0
        """Rises when a segment with fewer trades than were told takes another's place."""
        self.trade_log = TradeLog(config.trade_capacity)
        self.rolling = RollingDay()
        self.candles: CandleSource | None = None
        """Who keeps the candles, if anybody does."""
        self.orders: OrderLog | None = None
        """The feed order by order, of sources that know of orders."""
        self.notices: deque[Numbered] = deque(maxlen=NOTICE_CAPACITY)
        self.notice_count = 0
        self.revision = 0
        """Rises with every step after which a subscriber may have something to say."""
        self.nudge: Callable[[], None] = _ignore
        """Called when something arrived that a step would take, by sources that are told."""
        self.trouble = ""
        """Why the source cannot be read although it is there; empty: it can."""
        self._views: dict[int, SharedView] = {}
        self._encoders: dict[Format, Encoder] = {}
        self._encoded: dict[tuple[Format, Topic, Hashable], bytes] = {}
        self._encoded_bytes = 0
        self._kept: dict[tuple[Format, Topic], Kept] = {}
        self._ticker: tuple[int, TickerState] | None = None
        self._now_ns = 0

    # What subscriptions and calls ask.

    @property
    def ready(self) -> bool:
        """Whether there is a book to tell, be it one that stands still."""
        return self.book is not None

    @property
    def pair_status(self) -> int:
        """PairStatus of the wire; unspecified before anything was read."""
        return self.touch.status if self.touch else 0

    def pair_state(self) -> PairState:
        """Return what the pair accepts and how its engine is."""
        return PairState(
            epoch=self.epoch,
            sequence=self.sequence,
            status=self.pair_status,
            engine_state=self.engine_state,
            time_ns=self.time_ns,
            ready=self.ready,
            trade_count=self.touch.trade_count if self.touch else 0,
        )

    def ticker(self) -> TickerState:
        """Return the present ticker; there must be a touch."""
        assert self.touch is not None
        if self._ticker is None or self._ticker[0] != self.revision:
            last = self.trade_log.last()
            if last is not None and last[log.TRADE_NUMBER] != self.touch.trade_count:
                last = None
            state = TickerState(
                epoch=self.epoch,
                touch=self.touch,
                figures=self.figures(),
                last_trade=last,
                status=self.pair_status,
                engine_state=self.engine_state,
            )
            self._ticker = self.revision, state
        return self._ticker[1]

    def figures(self) -> Figures:
        """Return what was traded in the last 24 hours."""
        return self.rolling.figures(self.wall_ns)

    def snapshot(self, level_count: int) -> DepthSnapshot:
        """Return the best levels (FULL: `full_level_count` of each side); there must be a book."""
        assert self.book is not None
        bids, asks = self.book.top(self._levels(level_count))
        place = self.epoch, self.sequence, self.time_ns
        return DepthSnapshot(*place, bids, asks, depth_checksum(bids, asks))

    def order_snapshot(self) -> OrderSnapshot | None:
        """Return all orders of this moment or a moment ago; None: not at this step."""
        if self.orders is None:
            return None
        return self.orders.snapshot(self._now_ns, self._orders_now)

    def acquire_view(self, level_count: int) -> View:
        """Return the shared view of so many levels; give it back with `release_view`."""
        shared = self._views.get(level_count)
        if shared is None:
            view = View(self._levels(level_count))
            shared = self._views[level_count] = SharedView(view)
            if self.book is not None:
                shared.view.start(self.book, self.sequence)
        shared.user_count += 1
        return shared.view

    def release_view(self, level_count: int) -> None:
        """Say that one subscriber less uses the view."""
        shared = self._views[level_count]
        shared.user_count -= 1
        shared.idle_since_ns = self._now_ns

    def present_notice(self) -> Notice | None:
        """Return what a new subscriber has to be told first, if anything."""
        is_live = self.state is FeedState.LIVE
        if self.ready and is_live:
            return None
        notice = self._notice(NoticeKind.ENGINE_DOWN, DOWN[self.state])
        # A live engine is not said to be down: what comes of it, whatever its epoch, is its life.
        return notice._replace(epoch=0) if is_live else notice

    def missed_notice(self, count: int, message: str) -> Notice:
        """Return the notice that so much is missing on one subscriber's stream."""
        return self._notice(NoticeKind.MISSED, message, missed_count=count)

    def begun_anew_notice(self) -> Notice:
        """Return the notice that trades are of another history than one subscriber holds."""
        text = "the pair's data were made anew; trades begin again"
        notice = self._notice(NoticeKind.TRADES_RESTARTED, text)
        return notice._replace(next_trade_number=self.trade_log.oldest)

    def is_of_another_history(self, number: int, time_ns: int) -> bool:
        """Say whether a trade of that number and time is known not to be of this history.

        Times rise with numbers, so a trade that is not kept any more, or has not happened yet, is
        judged by its neighbours.
        """
        known = self.trade_log
        if known.oldest <= number <= known.newest:
            return int(known.since(number, 1)[0, log.TRADE_TIME_NS]) != time_ns
        if number < known.oldest <= known.newest:
            return int(known.since(known.oldest, 1)[0, log.TRADE_TIME_NS]) < time_ns
        last = self.touch
        return last is not None and last.trade_count < number and last.last_time_ns > time_ns

    def encoded(
        self, format_: Format, topic: Topic, key: Hashable, make: Callable[[], Record]
    ) -> bytes:
        """Return a record as bytes, from memory if it was asked for since the last step.

        `key` says which record of the topic it is: equal keys, equal records.
        """
        whole_key = (format_, topic, key)
        content = self._encoded.get(whole_key)
        if content is None:
            content = self.encoder(format_).encode(topic, make())
            self._encoded_bytes += len(content) + 256
            if self._encoded_bytes > ENCODED_LIMIT_BYTES:
                self._forget_encodings()
            self._encoded[whole_key] = content
        return content

    def kept_snapshot(
        self, format_: Format, topic: Topic, view: View, make: Callable[[], Record]
    ) -> Kept:
        """Return the snapshot of a view as bytes: of now, or one of every level of a moment ago.

        One of a moment ago is of a generation that the view can still tell the changes since.
        """
        kept = self._kept.get((format_, topic))
        if kept is not None and kept.epoch == self.epoch:
            fresh = self._now_ns - kept.made_ns < FULL_LIFE_NS
            if fresh and kept.generation >= view.oldest_generation:
                return kept
        content = self.encoded(format_, topic, (view.generation, "whole"), make)
        kept = Kept(self._now_ns, self.epoch, view.generation, view.sequence, content)
        if topic.detail == FULL:
            self._kept[format_, topic] = kept
        return kept

    def kept_answer(self, format_: Format, topic: Topic, make: Callable[[], Record]) -> bytes:
        """Return an answer as bytes: of now, or one of every level of a moment ago."""
        kept = self._kept.get((format_, topic))
        fresh = kept is not None and self._now_ns - kept.made_ns < FULL_LIFE_NS
        if kept is not None and fresh and kept.epoch == self.epoch:
            return kept.content
        content = self.encoded(format_, topic, None, make)
        if topic.detail == FULL:
            self._kept[format_, topic] = Kept(self._now_ns, self.epoch, 0, self.sequence, content)
        return content

    def encoder(self, format_: Format) -> Encoder:
        """Return this pair's encoder of a format."""
        encoder = self._encoders.get(format_)
        if encoder is None:
            encoder = self._encoders[format_] = format_(self.instrument)
        return encoder

    # What moves.

    def keep_candles(self, source: CandleSource) -> None:
        """Let a source keep the candles, and begin with what it knows; before the first step."""
        self.candles = source
        self.rolling.seed(source.known())

    def step(self, now_ns: int, time_ns: int) -> int:
        """Do what is due; return how much it was. Zero means that nothing happened.

        `now_ns` is of the clock the engine beats with (monotonic), `time_ns` of the wall clock.
        """
        self._now_ns, self.wall_ns = now_ns, time_ns
        self._forget_encodings()
        self._drop_idle_views()
        return self._advance()

    def watched_word(self) -> tuple[int, int] | None:
        """Return address and last value of a word that changes when there is something to do.

        Valid until the next step; None: there is no such word, `nudge` is called instead.
        """
        return None

    async def follow(self) -> None:
        """Do what a source has to do beside its steps, until cancelled; most have nothing."""

    def close(self) -> None:
        """Let go of the source; what was told stays."""

    def _advance(self) -> int:
        """Bring everything up to date from the source; return how much was done."""
        raise NotImplementedError

    def _orders_now(self) -> OrdersAt | None:
        """Return all orders at the position of the order log; None: not at this step.

        Asked of sources that know of orders.
        """
        raise NotImplementedError

    def _forget_encodings(self) -> None:
        self._encoded.clear()
        self._encoded_bytes = 0

    def _drop_idle_views(self) -> None:
        deadline_ns = self._now_ns - self.config.resume_ms * 1_000_000
        for level_count, shared in list(self._views.items()):
            if not shared.user_count and shared.idle_since_ns < deadline_ns:
                del self._views[level_count]
                for key in [key for key in self._kept if key[1].detail == level_count]:
                    del self._kept[key]

    def _levels(self, level_count: int) -> int:
        return self.config.full_level_count if level_count == FULL else level_count

    def _deepest_view(self) -> int:
        """Return how many levels a side the deepest view shows; at least 1."""
        return max((shared.view.level_count for shared in self._views.values()), default=1)

    def _take_trades(self, rows: Rows) -> None:
        """Take trades in order of their numbers; those that are known are passed over."""
        fresh = rows[rows[:, log.TRADE_NUMBER] > self.trade_log.newest]
        if not self.trade_log.append(fresh):
            return
        if self.candles is not None:
            history = self.candles.history
            self.candles.add_trades(fresh)
            if self.candles.history != history:
                # The pair began anew while nobody looked: what is known is of the old history.
                self.rolling = RollingDay()
        self.rolling.add(fresh)

    def _forget_trades(self, trade_count: int) -> None:
        """Begin another history, of which so many trades are not known."""
        self.trade_log.begin_after(trade_count)
        self.rolling = RollingDay()
        self.history += 1
        if self.candles is not None:
            self.candles.forget()

    def _reset_views(self, sequence: int) -> None:
        for shared in self._views.values():
            shared.view.reset(sequence)

    def _advance_views(self) -> None:
        assert self.book is not None
        for shared in self._views.values():
            shared.view.advance(self.book, self.sequence)

    def _set_engine_state(self, engine_state: int) -> None:
        if engine_state != self.engine_state:
            self.engine_state = engine_state
            self.revision += 1

    def _announce(
        self, kind: NoticeKind, message: str, status: int | None = None, missed_count: int = 0
    ) -> None:
        self._announce_notice(self._notice(kind, message, status, missed_count))

    def _announce_notice(self, content: Notice) -> None:
        self.notice_count += 1
        self.notices.append(Numbered(self.notice_count, content))
        self.revision += 1

    def _notice(
        self, kind: NoticeKind, message: str, status: int | None = None, missed_count: int = 0
    ) -> Notice:
        shown = self.pair_status if status is None else status
        return Notice(kind, self.epoch, self.engine_state, shown, missed_count, message)


def _ignore() -> None:
    """Do nothing: nobody waits for this source."""


DOWN: Final = {
    FeedState.WAITING: "there is no engine yet",
    FeedState.STARTING: "an engine is starting; data stand still",
    FeedState.LIVE: "the book is being read; data come soon",
    FeedState.STALE: "the engine is silent; data stand still",
    FeedState.CLOSED: "the engine stopped in good order; data stand still",
}
