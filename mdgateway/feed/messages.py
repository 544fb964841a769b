"""Market data in the words of the wire: rows of integers become serialised messages.

Pure. Every function returns bytes, so that one encoding serves every subscriber. Decimal text is
made from integers with the instrument's decimals; nothing is ever a fraction in between.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from exchange.enums import Side
from exchange.instrument import Instrument
from exchange.units import format_decimal, units_to_amount
from exchange.v1 import enums_pb2, market_data_pb2, stream_pb2
from mdgateway.book.reader import Touch
from mdgateway.feed.ticker import Figures

Rows = npt.NDArray[np.int64]

TRADE_NUMBER: Final = 0
TRADE_PRICE: Final = 1
TRADE_LOTS: Final = 2
TRADE_SIDE: Final = 3
TRADE_TIME_NS: Final = 4
TRADE_SEQUENCE: Final = 5
TRADE_COLUMNS: Final = 6

_BUY: Final = int(Side.BUY)

StreamMessage = type[
    market_data_pb2.StreamDepthResponse
    | market_data_pb2.StreamTradesResponse
    | market_data_pb2.StreamTickerResponse
]


def _without_zeros(units: int, decimals: int) -> tuple[int, int]:
    """Return a factor and its decimals with the zeros at its end taken off."""
    while decimals > 0 and units % 10 == 0:
        units, decimals = units // 10, decimals - 1
    return units, decimals


class Encoder:
    """Encodes one instrument's market data."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self._pair = instrument.pair
        self._tick, self._tick_decimals = _without_zeros(
            instrument.tick_quote_units, instrument.quote_decimals
        )
        self._lot, self._lot_decimals = _without_zeros(
            instrument.base_units_per_lot, instrument.base_decimals
        )

    def price(self, ticks: int) -> str:
        """Return a price as decimal text."""
        return format_decimal(ticks * self._tick, self._tick_decimals, self._tick_decimals)

    def quantity(self, lots: int) -> str:
        """Return a quantity as decimal text."""
        return format_decimal(lots * self._lot, self._lot_decimals, self._lot_decimals)

    def amount(self, quote_units: int) -> str:
        """Return a quote amount as decimal text."""
        return units_to_amount(self.instrument.quote_decimals, quote_units)

    def instrument_message(self, status: int) -> market_data_pb2.Instrument:
        """Return the specification of the pair as a message."""
        of = self.instrument
        return market_data_pb2.Instrument(
            pair=of.pair,
            base_asset=of.base_asset,
            quote_asset=of.quote_asset,
            base_decimals=of.base_decimals,
            quote_decimals=of.quote_decimals,
            tick_size=self.price(1),
            lot_size=self.quantity(1),
            tick_quote_units=of.tick_quote_units,
            base_units_per_lot=of.base_units_per_lot,
            price_capacity_ticks=of.price_capacity_ticks,
            quantity_limit_lots=of.quantity_limit_lots,
            minimum_notional=self.amount(of.minimum_notional_units),
            taker_fee_ppm=of.taker_fee_ppm,
            maker_fee_ppm=of.maker_fee_ppm,
            status=enums_pb2.PairStatus.ValueType(status),
        )

    def depth(
        self, epoch: int, sequence: int, time_ns: int, bids: Rows, asks: Rows
    ) -> market_data_pb2.Depth:
        """Return levels (price ticks, lots, orders), best first, as a message."""
        return market_data_pb2.Depth(
            pair=self._pair,
            epoch=epoch,
            sequence=sequence,
            time_ns=time_ns,
            bids=self._levels(bids.tolist()),
            asks=self._levels(asks.tolist()),
        )

    def snapshot(self, epoch: int, sequence: int, time_ns: int, bids: Rows, asks: Rows) -> bytes:
        """Return the snapshot of a depth stream."""
        depth = self.depth(epoch, sequence, time_ns, bids, asks)
        return market_data_pb2.StreamDepthResponse(snapshot=depth).SerializeToString()

    def update(
        self, epoch: int, previous_sequence: int, sequence: int, time_ns: int, changes: Rows
    ) -> bytes:
        """Return an update of a depth stream from change rows (side, price, lots, orders)."""
        bids, asks = changes[changes[:, 0] == _BUY], changes[changes[:, 0] != _BUY]
        update = market_data_pb2.DepthUpdate(
            epoch=epoch,
            previous_sequence=previous_sequence,
            sequence=sequence,
            time_ns=time_ns,
            bids=self._levels(bids[:, 1:].tolist()),
            asks=self._levels(asks[:, 1:].tolist()),
        )
        return market_data_pb2.StreamDepthResponse(update=update).SerializeToString()

    def trades(self, epoch: int, rows: Rows) -> bytes:
        """Return trade rows as a message of a trade stream."""
        batch = market_data_pb2.TradeBatch(
            epoch=epoch, trades=[self._trade(*row) for row in rows.tolist()]
        )
        return market_data_pb2.StreamTradesResponse(trades=batch).SerializeToString()

    def ticker(
        self, epoch: int, touch: Touch, figures: Figures, last_trade: Rows | None, state: int
    ) -> market_data_pb2.Ticker:
        """Return the ticker; `last_trade` is the trade's row if it was seen as an event."""
        worth = self.instrument.quote_units_per_tick_lot
        ticker = market_data_pb2.Ticker(
            pair=self._pair,
            epoch=epoch,
            sequence=touch.sequence,
            day_open=self.price(touch.day_open_ticks),
            day_high=self.price(touch.day_high_ticks),
            day_low=self.price(touch.day_low_ticks),
            day_volume=self.quantity(touch.day_lots),
            day_volume_lots=touch.day_lots,
            day_turnover=self.amount(touch.day_quote_units),
            volume_24h=self.quantity(figures.lots),
            volume_24h_lots=figures.lots,
            turnover_24h=self.amount(figures.tick_lots * worth),
            volume_since_ns=figures.since_ns,
            trade_count=touch.trade_count,
            status=enums_pb2.PairStatus.ValueType(touch.status),
            engine_state=enums_pb2.EngineState.ValueType(state),
        )
        if touch.bid_price_ticks:
            ticker.best_bid.CopyFrom(self._level(touch.bid_price_ticks, touch.bid_lots, 0))
        if touch.ask_price_ticks:
            ticker.best_ask.CopyFrom(self._level(touch.ask_price_ticks, touch.ask_lots, 0))
        if last_trade is not None:
            ticker.last_trade.CopyFrom(self._trade(*last_trade.tolist()))
        elif touch.trade_count:
            last = (touch.trade_count, touch.last_price_ticks, touch.last_lots, 0)
            ticker.last_trade.CopyFrom(self._trade(*last, touch.last_time_ns, 0))
        return ticker

    def _level(self, price: int, lots: int, orders: int) -> market_data_pb2.Level:
        return market_data_pb2.Level(
            price=self.price(price),
            price_ticks=price,
            quantity=self.quantity(lots),
            quantity_lots=lots,
            order_count=orders,
        )

    def _levels(self, rows: Iterable[list[int]]) -> list[market_data_pb2.Level]:
        return [self._level(*row) for row in rows]

    def _trade(
        self, number: int, price: int, lots: int, side: int, time_ns: int, sequence: int
    ) -> market_data_pb2.Trade:
        return market_data_pb2.Trade(
            trade_number=number,
            price=self.price(price),
            price_ticks=price,
            quantity=self.quantity(lots),
            quantity_lots=lots,
            taker_side=enums_pb2.Side.ValueType(side),
            time_ns=time_ns,
            sequence=sequence,
        )


def heartbeat(kind: StreamMessage, time_ns: int, position: int) -> bytes:
    """Return a heartbeat of a stream."""
    beat = stream_pb2.Heartbeat(time_ns=time_ns, position=position)
    return kind(heartbeat=beat).SerializeToString()


def goodbye(kind: StreamMessage, reason: str, resume_from: int) -> bytes:
    """Return the last message of a stream that the server ends."""
    message = stream_pb2.Goodbye(reason=reason, resume_from=resume_from)
    return kind(goodbye=message).SerializeToString()


def notice(kind: StreamMessage, content: market_data_pb2.Notice) -> bytes:
    """Return a notice on a stream."""
    return kind(notice=content).SerializeToString()
