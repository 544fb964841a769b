"""The records of the feed in the words of the gRPC contract.

Pure. Decimal text is made from integers with the instrument's decimals; nothing is ever a fraction
in between.
"""

from collections.abc import Iterable
from typing import Any, Final, assert_never

import numpy as np
import numpy.typing as npt

from exchange.enums import Side
from exchange.instrument import Instrument
from exchange.v1 import enums_pb2, market_data_pb2, stream_pb2
from mdgateway.feed.candles import Candle
from mdgateway.feed.records import (
    CandleRun,
    Channel,
    DepthSnapshot,
    DepthUpdate,
    Goodbye,
    Heartbeat,
    Notice,
    OrderPart,
    OrderRun,
    PairState,
    Record,
    Texts,
    TickerState,
    Topic,
    TradeRun,
)

Rows = npt.NDArray[np.int64]

_BUY: Final = int(Side.BUY)

RESPONSES: Final[dict[Channel, Any]] = {
    Channel.DEPTH: market_data_pb2.StreamDepthResponse,
    Channel.TRADES: market_data_pb2.StreamTradesResponse,
    Channel.TICKER: market_data_pb2.StreamTickerResponse,
    Channel.STATUS: market_data_pb2.StreamMarketStatusResponse,
    Channel.CANDLES: market_data_pb2.StreamCandlesResponse,
    Channel.ORDERS: market_data_pb2.StreamOrdersResponse,
}
"""The message type of each channel's stream."""


class ProtobufEncoder:
    """Encodes one instrument's market data; a ``Format`` of the feed."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.texts = Texts(instrument)
        self._pair = instrument.pair

    def encode(self, topic: Topic, record: Record) -> bytes:
        """Return a record as one message of the stream of its topic."""
        response = RESPONSES[topic.channel]
        content: bytes = response(**self._event(record)).SerializeToString()
        return content

    def _event(self, record: Record) -> dict[str, Any]:
        match record:
            case DepthSnapshot():
                return {"snapshot": self.depth(record)}
            case DepthUpdate():
                return {"update": self._update(record)}
            case TradeRun():
                return {
                    "trades": market_data_pb2.TradeBatch(
                        epoch=record.epoch, trades=self.trades(record.rows)
                    )
                }
            case TickerState():
                return {"ticker": self.ticker(record)}
            case PairState():
                return {"state": self.pair_state(record)}
            case CandleRun():
                return {
                    "candles": market_data_pb2.CandleBatch(
                        candles=self.candles(record.candles),
                        epoch=record.epoch,
                        sequence=record.sequence,
                        is_snapshot=record.is_snapshot,
                    )
                }
            case OrderPart():
                return {"snapshot": self._order_part(record)}
            case OrderRun():
                return {"events": _order_run(record)}
            case Notice():
                return {"notice": _notice(record)}
            case Heartbeat():
                return {
                    "heartbeat": stream_pb2.Heartbeat(
                        time_ns=record.time_ns, position=record.position
                    )
                }
            case Goodbye():
                return {
                    "goodbye": stream_pb2.Goodbye(
                        reason=record.reason, resume_from=record.resume_from
                    )
                }
            case _:
                assert_never(record)

    def instrument_message(self, status: int) -> market_data_pb2.Instrument:
        """Return the specification of the pair."""
        of, texts = self.instrument, self.texts
        return market_data_pb2.Instrument(
            pair=of.pair,
            base_asset=of.base_asset,
            quote_asset=of.quote_asset,
            base_decimals=of.base_decimals,
            quote_decimals=of.quote_decimals,
            tick_size=texts.price(1),
            lot_size=texts.quantity(1),
            tick_quote_units=of.tick_quote_units,
            base_units_per_lot=of.base_units_per_lot,
            price_capacity_ticks=of.price_capacity_ticks,
            quantity_limit_lots=of.quantity_limit_lots,
            minimum_notional=texts.amount(of.minimum_notional_units),
            taker_fee_ppm=of.taker_fee_ppm,
            maker_fee_ppm=of.maker_fee_ppm,
            status=enums_pb2.PairStatus.ValueType(status),
        )

    def depth(self, record: DepthSnapshot) -> market_data_pb2.Depth:
        """Return levels as a message."""
        return market_data_pb2.Depth(
            pair=self._pair,
            epoch=record.epoch,
            sequence=record.sequence,
            time_ns=record.time_ns,
            bids=self._levels(record.bids.tolist()),
            asks=self._levels(record.asks.tolist()),
            checksum=record.checksum,
        )

    def pair_state(self, record: PairState) -> market_data_pb2.PairState:
        """Return the status of the pair as a message."""
        return market_data_pb2.PairState(
            pair=self._pair,
            epoch=record.epoch,
            sequence=record.sequence,
            status=enums_pb2.PairStatus.ValueType(record.status),
            engine_state=enums_pb2.EngineState.ValueType(record.engine_state),
            time_ns=record.time_ns,
            has_book=record.ready,
            trade_count=record.trade_count,
        )

    def trades(self, rows: Rows) -> list[market_data_pb2.Trade]:
        """Return trade rows as messages."""
        return [self._trade(*row) for row in rows.tolist()]

    def candles(self, candles: Iterable[Candle]) -> list[market_data_pb2.Candle]:
        """Return candles as messages."""
        texts = self.texts
        return [
            market_data_pb2.Candle(
                start_ns=one.start_ns,
                open=texts.price(one.open_ticks),
                high=texts.price(one.high_ticks),
                low=texts.price(one.low_ticks),
                close=texts.price(one.close_ticks),
                volume=texts.quantity(one.lots),
                turnover=texts.turnover(one.tick_lots),
                trade_count=one.trade_count,
                last_trade_number=one.last_trade_number,
                closed=one.closed,
                open_ticks=one.open_ticks,
                high_ticks=one.high_ticks,
                low_ticks=one.low_ticks,
                close_ticks=one.close_ticks,
                volume_lots=one.lots,
            )
            for one in candles
        ]

    def ticker(self, record: TickerState) -> market_data_pb2.Ticker:
        """Return the ticker as a message."""
        touch, figures, texts = record.touch, record.figures, self.texts
        ticker = market_data_pb2.Ticker(
            pair=self._pair,
            epoch=record.epoch,
            sequence=touch.sequence,
            day_open=texts.price(touch.day_open_ticks),
            day_high=texts.price(touch.day_high_ticks),
            day_low=texts.price(touch.day_low_ticks),
            day_volume=texts.quantity(touch.day_lots),
            day_volume_lots=touch.day_lots,
            day_turnover=texts.amount(touch.day_quote_units),
            volume_24h=texts.quantity(figures.lots),
            volume_24h_lots=figures.lots,
            turnover_24h=texts.turnover(figures.tick_lots),
            volume_since_ns=figures.since_ns,
            trade_count=touch.trade_count,
            status=enums_pb2.PairStatus.ValueType(record.status),
            engine_state=enums_pb2.EngineState.ValueType(record.engine_state),
            trade_count_24h=figures.trade_count,
        )
        if figures.lots:
            ticker.open_24h = texts.price(figures.open_ticks)
            ticker.high_24h = texts.price(figures.high_ticks)
            ticker.low_24h = texts.price(figures.low_ticks)
            ticker.vwap_24h = texts.price(figures.average_ticks)
            ticker.change_24h_ticks = touch.last_price_ticks - figures.open_ticks
        if touch.bid_price_ticks:
            ticker.best_bid.CopyFrom(self._level(touch.bid_price_ticks, touch.bid_lots, 0))
        if touch.ask_price_ticks:
            ticker.best_ask.CopyFrom(self._level(touch.ask_price_ticks, touch.ask_lots, 0))
        if record.last_trade is not None:
            ticker.last_trade.CopyFrom(self._trade(*record.last_trade.tolist()))
        elif touch.trade_count:
            last = (touch.trade_count, touch.last_price_ticks, touch.last_lots, 0)
            ticker.last_trade.CopyFrom(self._trade(*last, touch.last_time_ns, 0))
        return ticker

    def _update(self, record: DepthUpdate) -> market_data_pb2.DepthUpdate:
        is_bid = record.changes[:, 0] == _BUY
        return market_data_pb2.DepthUpdate(
            epoch=record.epoch,
            previous_sequence=record.previous_sequence,
            sequence=record.sequence,
            time_ns=record.time_ns,
            bids=self._levels(record.changes[is_bid, 1:].tolist()),
            asks=self._levels(record.changes[~is_bid, 1:].tolist()),
            checksum=record.checksum,
            merged_count=record.merged_count,
        )

    def _order_part(self, record: OrderPart) -> market_data_pb2.OrderSnapshot:
        return market_data_pb2.OrderSnapshot(
            pair=self._pair,
            epoch=record.epoch,
            sequence=record.sequence,
            position=record.position,
            part=record.part,
            is_last=record.is_last,
            orders=[
                market_data_pb2.RestingOrder(
                    order_number=number,
                    side=enums_pb2.Side.ValueType(side),
                    price_ticks=price,
                    quantity_lots=lots,
                )
                for number, side, price, lots, _ in record.orders.tolist()
            ],
            unknown=[
                market_data_pb2.UnknownOrders(
                    side=enums_pb2.Side.ValueType(side),
                    price_ticks=price,
                    quantity_lots=lots,
                    order_count=count,
                )
                for side, price, lots, count in record.unknown.tolist()
            ],
        )

    def _level(self, price: int, lots: int, orders: int) -> market_data_pb2.Level:
        return market_data_pb2.Level(
            price=self.texts.price(price),
            price_ticks=price,
            quantity=self.texts.quantity(lots),
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
            price=self.texts.price(price),
            price_ticks=price,
            quantity=self.texts.quantity(lots),
            quantity_lots=lots,
            taker_side=enums_pb2.Side.ValueType(side),
            time_ns=time_ns,
            sequence=sequence,
        )


def _order_run(record: OrderRun) -> market_data_pb2.OrderBatch:
    return market_data_pb2.OrderBatch(
        epoch=record.epoch,
        previous_position=record.previous_position,
        position=record.position,
        more_follows=record.more_follows,
        events=[
            market_data_pb2.OrderEvent(
                action=market_data_pb2.OrderAction.ValueType(action),
                order_number=order,
                side=enums_pb2.Side.ValueType(side),
                price_ticks=price,
                quantity_lots=lots,
                trade_number=trade,
                sequence=sequence,
                time_ns=time_ns,
                is_gone=bool(gone),
                position=position,
            )
            for action, order, side, price, lots, trade, sequence, time_ns, position, gone in (
                record.rows.tolist()
            )
        ],
    )


def _notice(record: Notice) -> market_data_pb2.Notice:
    return market_data_pb2.Notice(
        kind=market_data_pb2.NoticeKind.ValueType(int(record.kind)),
        epoch=record.epoch,
        engine_state=enums_pb2.EngineState.ValueType(record.engine_state),
        status=enums_pb2.PairStatus.ValueType(record.status),
        missed_count=record.missed_count,
        message=record.message,
        next_trade_number=record.next_trade_number,
    )
