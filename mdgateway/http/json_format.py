"""The records of the feed as JSON, as docs/market-data-http.md has it.

Pure. Prices, quantities and amounts are exact decimal text made from integers; moments are text as
well, because they do not fit into the numbers of JavaScript. Levels are written with string
formatting: they hold nothing that JSON would have to escape, and there are many of them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, assert_never

import numpy as np
import numpy.typing as npt

from exchange.enums import PairStatus, Side
from exchange.instrument import Instrument
from exchange.refusal import Refusal
from mdgateway.feed.candles import Candle
from mdgateway.feed.records import (
    FULL,
    CandleRun,
    DepthSnapshot,
    DepthUpdate,
    Goodbye,
    Heartbeat,
    Notice,
    NoticeKind,
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
Json = dict[str, Any]

SECOND_NS: Final = 1_000_000_000
_BUY: Final = int(Side.BUY)
SIDES: Final[dict[int, str | None]] = {0: None, 1: "buy", 2: "sell"}
ENGINE_STATES: Final = (
    *("unknown", "starting", "ready", "journal_blocked", "draining", "closing", "closed"),
)
"""By the numbers of the contract's EngineState."""
ORDER_ACTIONS: Final = ("unknown", "add", "reduce", "delete", "execute")
"""By the numbers of the contract's OrderAction."""


def dumps(content: Mapping[str, Any] | list[Any]) -> bytes:
    """Return an object or a list as JSON without spaces, in ASCII."""
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def status_name(status: int) -> str:
    """Return a PairStatus as clients read it."""
    return "unknown" if not status else PairStatus(status).name.lower()


def engine_state_name(state: int) -> str:
    """Return an EngineState of the contract as clients read it."""
    return ENGINE_STATES[state]


def refusal_fields(refusal: Refusal) -> Json:
    """Return the five fields of every refusal."""
    return {
        "reason": refusal.reason,
        "message": refusal.message,
        "field": refusal.field,
        "value": refusal.value,
        "limit": refusal.limit,
    }


class JsonEncoder:
    """Encodes one instrument's market data; a ``Format`` of the feed."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.texts = Texts(instrument)
        self._pair = instrument.pair

    def encode(self, topic: Topic, record: Record) -> bytes:
        """Return a record as one message of its topic."""
        match record:
            case DepthSnapshot():
                return self._told("snapshot", topic, self.depth(record, topic.detail))
            case DepthUpdate():
                return self._told("update", topic, self._update(record))
            case TradeRun():
                trades = self.trades(record.rows)
                fields = f'"pair":"{self._pair}","epoch":{record.epoch},"trades":{trades}'
                return self._told("trades", topic, fields)
            case TickerState():
                return self._told("ticker", topic, _inner(self.ticker(record)))
            case PairState():
                return self._told("status", topic, _inner(self.pair_state(record)))
            case CandleRun():
                kind = "snapshot" if record.is_snapshot else "update"
                return self._told(kind, topic, _inner(self._candle_run(record)))
            case OrderPart():
                return self._told("snapshot", topic, _inner(self._order_part(record)))
            case OrderRun():
                return self._told("events", topic, _inner(self._order_run(record)))
            case Notice():
                return dumps(self.notice(record, topic.channel.value))
            case Heartbeat() | Goodbye():
                raise AssertionError("this door beats and says goodbye for a connection as a whole")
            case _:
                assert_never(record)

    def instrument_fields(self, status: int) -> Json:
        """Return the specification of the pair."""
        of, texts = self.instrument, self.texts
        return {
            "pair": of.pair,
            "base_asset": of.base_asset,
            "quote_asset": of.quote_asset,
            "tick_size": texts.price(1),
            "lot_size": texts.quantity(1),
            "tick_step": _digits(texts.price(1)),
            "lot_step": _digits(texts.quantity(1)),
            "price_decimals": texts.price_decimals,
            "quantity_decimals": texts.quantity_decimals,
            "minimum_notional": texts.amount(of.minimum_notional_units),
            "taker_fee_ppm": of.taker_fee_ppm,
            "maker_fee_ppm": of.maker_fee_ppm,
            "status": status_name(status),
        }

    def depth(self, record: DepthSnapshot, level_count: int) -> str:
        """Return levels as the fields of an object, without its braces."""
        levels = '"full"' if level_count == FULL else str(level_count)
        return (
            f'"pair":"{self._pair}","epoch":{record.epoch},"sequence":{record.sequence}'
            f',"time_ns":"{record.time_ns}","levels":{levels}'
            f',"bids":{self._levels(record.bids.tolist())}'
            f',"asks":{self._levels(record.asks.tolist())},"checksum":{record.checksum}'
        )

    def trades(self, rows: Rows) -> str:
        """Return trade rows as a JSON array, in their order."""
        return dumps([self._trade(*row) for row in rows.tolist()]).decode()

    def ticker(self, record: TickerState) -> Json:
        """Return the ticker."""
        touch, figures, texts = record.touch, record.figures, self.texts
        last = None
        if record.last_trade is not None:
            last = self._trade(*record.last_trade.tolist())
        elif touch.trade_count:
            seen = (touch.trade_count, touch.last_price_ticks, touch.last_lots, 0)
            last = self._trade(*seen, touch.last_time_ns, 0)

        def price(ticks: int) -> str | None:
            return texts.price(ticks) if ticks else None

        change = touch.last_price_ticks - figures.open_ticks if figures.lots else None
        return {
            "pair": self._pair,
            "epoch": record.epoch,
            "sequence": touch.sequence,
            "best_bid": self._best(touch.bid_price_ticks, touch.bid_lots),
            "best_ask": self._best(touch.ask_price_ticks, touch.ask_lots),
            "last_trade": last,
            "day_open": price(touch.day_open_ticks),
            "day_high": price(touch.day_high_ticks),
            "day_low": price(touch.day_low_ticks),
            "day_volume": texts.quantity(touch.day_lots),
            "day_turnover": texts.amount(touch.day_quote_units),
            "open_24h": price(figures.open_ticks),
            "high_24h": price(figures.high_ticks),
            "low_24h": price(figures.low_ticks),
            "vwap_24h": price(figures.average_ticks),
            "change_24h": None if change is None else texts.price(change),
            "volume_24h": texts.quantity(figures.lots),
            "turnover_24h": texts.turnover(figures.tick_lots),
            "trade_count_24h": figures.trade_count,
            "volume_since_ns": str(figures.since_ns),
            "trade_count": touch.trade_count,
            "status": status_name(record.status),
            "engine_state": engine_state_name(record.engine_state),
        }

    def pair_state(self, record: PairState) -> Json:
        """Return the status of the pair."""
        return {
            "pair": self._pair,
            "epoch": record.epoch,
            "sequence": record.sequence,
            "status": status_name(record.status),
            "engine_state": engine_state_name(record.engine_state),
            "time_ns": str(record.time_ns),
            "ready": record.ready,
            "trade_number": record.trade_count,
        }

    def candles(self, candles: Iterable[Candle]) -> list[Json]:
        """Return candles in their order."""
        texts = self.texts
        return [
            {
                "start_s": one.start_ns // SECOND_NS,
                "open": texts.price(one.open_ticks),
                "high": texts.price(one.high_ticks),
                "low": texts.price(one.low_ticks),
                "close": texts.price(one.close_ticks),
                "volume": texts.quantity(one.lots),
                "turnover": texts.turnover(one.tick_lots),
                "trade_count": one.trade_count,
                "last_trade_number": one.last_trade_number,
                "closed": one.closed,
            }
            for one in candles
        ]

    def notice(self, record: Notice, channel: str = "") -> Json:
        """Return a notice: of the pair, or of one channel of one connection."""
        about = {"channel": channel} if channel else {}
        return {
            "type": "notice",
            **about,
            "pair": self._pair,
            "notice": NoticeKind(record.kind).name.lower(),
            "epoch": record.epoch,
            "engine_state": engine_state_name(record.engine_state),
            "status": status_name(record.status),
            "missed_count": record.missed_count,
            "next_trade_number": record.next_trade_number or None,
            "message": record.message,
        }

    def _told(self, kind: str, topic: Topic, fields: str) -> bytes:
        return f'{{"type":"{kind}","channel":"{topic.channel}",{fields}}}'.encode()

    def _update(self, record: DepthUpdate) -> str:
        is_bid = record.changes[:, 0] == _BUY
        return (
            f'"pair":"{self._pair}","epoch":{record.epoch}'
            f',"previous_sequence":{record.previous_sequence},"sequence":{record.sequence}'
            f',"time_ns":"{record.time_ns}"'
            f',"bids":{self._levels(record.changes[is_bid, 1:].tolist())}'
            f',"asks":{self._levels(record.changes[~is_bid, 1:].tolist())}'
            f',"checksum":{record.checksum},"merged_count":{record.merged_count}'
        )

    def _candle_run(self, record: CandleRun) -> Json:
        return {
            "pair": self._pair,
            "interval": record.interval.text,
            "epoch": record.epoch,
            "sequence": record.sequence,
            "candles": self.candles(record.candles),
        }

    def _order_part(self, record: OrderPart) -> Json:
        price, quantity = self.texts.price, self.texts.quantity
        return {
            "pair": self._pair,
            "epoch": record.epoch,
            "sequence": record.sequence,
            "position": record.position,
            "part": record.part,
            "is_last": record.is_last,
            "orders": [
                [str(number), SIDES[side], price(ticks), quantity(lots)]
                for number, side, ticks, lots, _ in record.orders.tolist()
            ],
            "unknown": [
                [SIDES[side], price(ticks), quantity(lots), count]
                for side, ticks, lots, count in record.unknown.tolist()
            ],
        }

    def _order_run(self, record: OrderRun) -> Json:
        return {
            "pair": self._pair,
            "epoch": record.epoch,
            "previous_position": record.previous_position,
            "position": record.position,
            "more_follows": record.more_follows,
            "events": [
                {
                    "action": ORDER_ACTIONS[action],
                    "order_number": str(order),
                    "side": SIDES[side],
                    "price": self.texts.price(price),
                    "quantity": self.texts.quantity(lots),
                    "trade_number": trade or None,
                    "sequence": sequence,
                    "time_ns": str(time_ns),
                    "is_gone": bool(gone),
                    "position": position,
                }
                for action, order, side, price, lots, trade, sequence, time_ns, position, gone in (
                    record.rows.tolist()
                )
            ],
        }

    def _levels(self, rows: Iterable[list[int]]) -> str:
        price, quantity = self.texts.price, self.texts.quantity
        return (
            "["
            + ",".join(
                f'["{price(ticks)}","{quantity(lots)}",{orders}]' for ticks, lots, orders in rows
            )
            + "]"
        )

    def _best(self, ticks: int, lots: int) -> Json | None:
        if not ticks:
            return None
        return {"price": self.texts.price(ticks), "quantity": self.texts.quantity(lots)}

    def _trade(
        self, number: int, price: int, lots: int, side: int, time_ns: int, sequence: int
    ) -> Json:
        return {
            "trade_number": number,
            "price": self.texts.price(price),
            "quantity": self.texts.quantity(lots),
            "side": SIDES[side],
            "time_ns": str(time_ns),
            "sequence": sequence,
        }


def _inner(content: Json) -> str:
    return dumps(content)[1:-1].decode()


def _digits(text: str) -> int:
    return int(text.replace(".", ""))
