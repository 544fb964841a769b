"""The publication of one pair from another gateway's feed.

The same interface as over a segment: depth of every level, trades, orders, ticker and status of the
upstream become book, views, logs and notices here, so that whoever subscribes cannot tell how many
gateways there are before this one. Epoch, sequence, trade numbers and positions are the engine's
all the way down: a subscriber may leave one gateway of the tree and go on with another.

Each update is verified by its checksum; one that does not fit ends the streams, and they begin
anew. While the upstream is out of reach the last book stays served, as when an engine is.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from exchange.book_layout import (
    EVENT_COUNT,
    EVENT_LEVEL,
    EVENT_LOTS,
    EVENT_PRICE,
    EVENT_VERB,
    EVENT_WORDS,
)
from exchange.enums import Side
from exchange.instrument import Instrument
from exchange.units import amount_to_units, price_to_ticks
from exchange.v1 import market_data_pb2
from mdgateway.book.checksum import CHECKED_LEVELS, depth_checksum
from mdgateway.book.depth import LEVEL_COLUMNS, DepthBook, Snapshot
from mdgateway.book.orders import OrdersAt
from mdgateway.book.reader import FeedState, Touch
from mdgateway.config import GatewayConfig
from mdgateway.feed import trade_log as log
from mdgateway.feed.order_log import OrderLog
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import Notice, NoticeKind
from mdgateway.feed.ticker import Figures
from mdgateway.relay.orders import ToldOrders
from mdgateway.relay.upstream import Connected, Item, Lost, Upstream

Rows = npt.NDArray[np.int64]

ITEMS_PER_STEP: Final = 2_000
"""What is beyond is taken at the next step, so that subscribers are not kept waiting."""
NO_FIGURES: Final = Figures(0, 0, 0, 0, 0, 0, 0, 0)


class Relay(Publication):
    """Market data of one pair, followed from another gateway."""

    def __init__(self, instrument: Instrument, config: GatewayConfig) -> None:
        super().__init__(instrument, config)
        self.upstream = Upstream(config.upstream, instrument.pair, self, config.upstream_key)
        self._orders = ToldOrders(OrderLog(config.order_event_capacity), config.full_level_count)
        self._without_orders = False
        """Whether the upstream said that it has no orders to tell."""
        self._mine = ProtobufEncoder(instrument).instrument_message(0)
        self._figures = NO_FIGURES
        self._status = 0
        self._upstream_state = 0
        self._told_sequence = 0
        """Sequence of the snapshot or update taken last."""
        self._anew = True
        """Whether subscribers start anew with the next book."""
        self._down: Notice | None = None
        """How the upstream says that its engine is down; None: it does not."""
        self._advanced = False

    async def follow(self) -> None:
        """Follow the upstream until cancelled."""
        await self.upstream.follow()

    def held(self) -> tuple[int, int]:
        """Return where the depth stream may resume."""
        if self.book is None:
            return 0, 0
        return self.epoch, self._told_sequence

    def next_trade_number(self) -> int:
        """Return the first trade wanted: at first the oldest that the upstream has."""
        return self.trade_log.newest + 1

    def held_time_ns(self) -> int:
        """Return the time of the trade before it; zero: it is not known."""
        last = self.trade_log.last()
        return 0 if last is None else int(last[log.TRADE_TIME_NS])

    def held_orders(self) -> tuple[int, int]:
        """Return where the order stream may resume."""
        return self._orders.held()

    def tells_orders(self) -> bool:
        """Return whether the upstream ever told orders."""
        return self.orders is not None

    def do_without_orders(self) -> None:
        """Be ready without orders."""
        self._without_orders = True

    def arrived(self) -> None:
        """Pass on that there is something to take."""
        self.nudge()

    @property
    def ready(self) -> bool:
        """Whether there is a book to tell, and it is known whether there are orders."""
        return super().ready and (self.orders is not None or self._without_orders)

    @property
    def pair_status(self) -> int:
        """PairStatus of the wire as the upstream told it."""
        return self._status

    def figures(self) -> Figures:
        """Return the upstream's figures, which cover more than this relay has seen."""
        return self._figures

    def _advance(self) -> int:
        done = 0
        self._advanced = False
        while done < ITEMS_PER_STEP and (item := self.upstream.take()) is not None:
            done += 1
            self._take(item)
        if self._advanced and self.book is not None:
            if self._anew:
                self._anew = False
                for shared in self._views.values():
                    shared.view.start(self.book, self.sequence)
            else:
                self._advance_views()
            self.revision += 1
        return done

    def _take(self, item: Item) -> None:
        match item:
            case Connected():
                self._check(item.instrument)
            case Lost():
                self._lose(item.reason)
            case market_data_pb2.StreamDepthResponse():
                self._take_depth(item)
            case market_data_pb2.StreamTradesResponse():
                self._take_trade_message(item)
            case market_data_pb2.StreamTickerResponse():
                if item.HasField("ticker"):
                    self._take_ticker(item.ticker)
            case market_data_pb2.StreamMarketStatusResponse():
                if item.HasField("state"):
                    self._take_state(item.state)
            case market_data_pb2.StreamOrdersResponse():
                self._take_orders(item)

    def _check(self, theirs: market_data_pb2.Instrument) -> None:
        """Take nothing from a gateway that counts in other units."""
        self.trouble, self._down = "", None
        self._orders.begin_stream()
        for name in ("tick_quote_units", "base_units_per_lot", "base_decimals", "quote_decimals"):
            given, wanted = getattr(theirs, name), getattr(self._mine, name)
            if given != wanted:
                self.trouble = f"{name} is {given} at {self.upstream.address}, here {wanted}"

    def _lose(self, reason: str) -> None:
        if self.state is FeedState.LIVE:
            self.state = FeedState.STALE
            self._set_engine_state(0)
            self._announce(NoticeKind.ENGINE_DOWN, f"{reason}; data stand still")

    def _come_back(self) -> None:
        """Note that something was heard: live again, unless the upstream's engine is down."""
        if self._down is not None:
            self.state = FeedState.STALE
            return
        self._set_engine_state(self._upstream_state)
        before, self.state = self.state, FeedState.LIVE
        if before is FeedState.LIVE:
            return
        self.revision += 1
        if before is FeedState.STALE:
            # Whoever is here was told that data stand still.
            text = "the upstream gateway tells of an engine again; start anew"
            self._announce(NoticeKind.ENGINE_RESTARTED, text)
            self._anew = True

    # Depth.

    def _take_depth(self, message: market_data_pb2.StreamDepthResponse) -> None:
        if self.trouble:
            return
        match message.WhichOneof("event"):
            case "snapshot":
                self._take_snapshot(message.snapshot)
            case "update":
                self._take_update(message.update)
            case "heartbeat":
                if self.book is not None:
                    self._come_back()
                    self._advanced |= self._anew
                    self.sequence = max(self.sequence, message.heartbeat.position)
            case "notice":
                self._take_notice(message.notice)

    def _take_snapshot(self, depth: market_data_pb2.Depth) -> None:
        is_another = depth.epoch != self.epoch
        if is_another or depth.sequence < self._told_sequence:
            self._anew = True
        self.epoch = depth.epoch
        if self._down is not None and self._down.epoch != self.epoch:
            # Of an engine that was not said to be down, as the first one that an upstream finds:
            # for that one there is no notice.
            self._down = None
        self._come_back()
        if is_another and self._down is not None:
            # What subscribers were told is of the engine before this one, or of none.
            self._announce_notice(self._down)
        if self.book is None:
            self.book = DepthBook(self.config.level_capacity)
        self.book.load(
            Snapshot(
                sequence=depth.sequence,
                event_position=self.book.event_position,
                bids=_level_rows(depth.bids),
                asks=_level_rows(depth.asks),
                bids_complete=True,
                asks_complete=True,
            )
        )
        self._reach(depth.sequence, depth.time_ns, depth.checksum)

    def _take_update(self, update: market_data_pb2.DepthUpdate) -> None:
        fits = update.epoch == self.epoch and update.previous_sequence == self._told_sequence
        if self.book is None or not fits:
            self.upstream.give_up("an update does not follow what is held")
            return
        self._come_back()
        rows = np.zeros((len(update.bids) + len(update.asks), EVENT_WORDS), np.int64)
        for index, (side, level) in enumerate(
            [(Side.BUY, one) for one in update.bids] + [(Side.SELL, one) for one in update.asks]
        ):
            rows[index, EVENT_VERB] = EVENT_LEVEL | int(side) << 8
            rows[index, EVENT_PRICE] = level.price_ticks
            rows[index, EVENT_LOTS] = level.quantity_lots
            rows[index, EVENT_COUNT] = level.order_count
        self.book.apply(rows, self.book.event_position)
        self._reach(update.sequence, update.time_ns, update.checksum)

    def _reach(self, sequence: int, time_ns: int, checksum: int) -> None:
        assert self.book is not None
        self._told_sequence = sequence
        self.sequence = sequence
        self.time_ns = max(self.time_ns, time_ns)
        self._advanced = True
        if depth_checksum(*self.book.top(CHECKED_LEVELS)) != checksum:
            self.upstream.give_up(f"the book does not have the checksum told at {sequence}")
            self._told_sequence = 0

    def _take_notice(self, notice: market_data_pb2.Notice) -> None:
        kind = NoticeKind(notice.kind)
        content = Notice(
            kind,
            notice.epoch,
            notice.engine_state,
            notice.status,
            notice.missed_count,
            notice.message,
        )
        if kind is NoticeKind.ENGINE_DOWN:
            self._down = content
            if self.state is not FeedState.LIVE:
                return
            self.state = FeedState.STALE
            self._set_engine_state(0)
        elif kind is NoticeKind.ENGINE_RESTARTED:
            self._down = None
            self.state, self._anew = FeedState.LIVE, True
        elif notice.engine_state:
            self._down = None
        if kind is NoticeKind.MISSED:
            self._anew = True
        self._announce_notice(content)

    # The rest.

    def _take_trade_message(self, message: market_data_pb2.StreamTradesResponse) -> None:
        if message.HasField("notice") and message.notice.next_trade_number:
            before = message.notice.next_trade_number - 1
            anew = message.notice.kind == market_data_pb2.NOTICE_KIND_TRADES_RESTARTED
            if anew and before < self.trade_log.newest:
                self._forget_trades(before)
            if before > self.trade_log.newest:
                self.trade_log.begin_after(before)
        if not message.HasField("trades"):
            return
        rows = np.array(
            [
                (
                    one.trade_number,
                    one.price_ticks,
                    one.quantity_lots,
                    one.taker_side,
                    one.time_ns,
                    one.sequence,
                )
                for one in message.trades.trades
            ],
            np.int64,
        ).reshape(-1, log.TRADE_COLUMNS)
        self._take_trades(rows)
        self.revision += 1

    def _take_orders(self, message: market_data_pb2.StreamOrdersResponse) -> None:
        if self.trouble:
            return
        reason = ""
        match message.WhichOneof("event"):
            case "snapshot":
                self.orders = self._orders.log
                reason = self._orders.take_part(message.snapshot)
            case "events":
                reason = self._orders.take_batch(message.events)
            case "heartbeat":
                self._orders.reach(message.heartbeat.position)
        # Notices are those of the depth stream as well.
        if reason:
            self.upstream.give_up(reason)
        self.revision += 1

    def _orders_now(self) -> OrdersAt | None:
        return self._orders.orders_now()

    def _take_state(self, state: market_data_pb2.PairState) -> None:
        self._status, self._upstream_state = state.status, state.engine_state
        self.time_ns = max(self.time_ns, state.time_ns)
        if self.state is FeedState.LIVE:
            self._set_engine_state(state.engine_state)
        if state.epoch > self.epoch > 0 and state.trade_count < self.trade_log.newest:
            # Another history took the place of the one that was told.
            self._forget_trades(state.trade_count)
        self.revision += 1

    def _take_ticker(self, ticker: market_data_pb2.Ticker) -> None:
        self.touch = self._touch_of(ticker)
        self._figures = self._figures_of(ticker)
        self._status = ticker.status
        self.revision += 1

    def _touch_of(self, ticker: market_data_pb2.Ticker) -> Touch:
        return Touch(
            version=0,
            sequence=ticker.sequence,
            bid_price_ticks=ticker.best_bid.price_ticks,
            bid_lots=ticker.best_bid.quantity_lots,
            ask_price_ticks=ticker.best_ask.price_ticks,
            ask_lots=ticker.best_ask.quantity_lots,
            last_price_ticks=ticker.last_trade.price_ticks,
            last_lots=ticker.last_trade.quantity_lots,
            last_time_ns=ticker.last_trade.time_ns,
            trade_count=ticker.trade_count,
            day_open_ticks=self._ticks(ticker.day_open),
            day_high_ticks=self._ticks(ticker.day_high),
            day_low_ticks=self._ticks(ticker.day_low),
            day_lots=ticker.day_volume_lots,
            day_quote_units=self._units(ticker.day_turnover),
            status=ticker.status,
        )

    def _figures_of(self, ticker: market_data_pb2.Ticker) -> Figures:
        worth = self.instrument.quote_units_per_tick_lot
        return Figures(
            lots=ticker.volume_24h_lots,
            tick_lots=self._units(ticker.turnover_24h) // worth,
            high_ticks=self._ticks(ticker.high_24h),
            low_ticks=self._ticks(ticker.low_24h),
            average_ticks=self._ticks(ticker.vwap_24h),
            since_ns=ticker.volume_since_ns,
            open_ticks=self._ticks(ticker.open_24h),
            trade_count=ticker.trade_count_24h,
        )

    def _ticks(self, price: str) -> int:
        return price_to_ticks(self.instrument, price) if price else 0

    def _units(self, amount: str) -> int:
        return amount_to_units(self.instrument.quote_decimals, amount) if amount else 0


def _level_rows(levels: Iterable[market_data_pb2.Level]) -> Rows:
    rows = [(one.price_ticks, one.quantity_lots, one.order_count) for one in levels]
    return np.array(rows, np.int64).reshape(-1, LEVEL_COLUMNS)
