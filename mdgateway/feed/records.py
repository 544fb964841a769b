"""What is told of a pair, before it is bytes: neutral records, the same for every door.

A door (gRPC, WebSocket, REST, a relay) differs from another in how a record is written down, never
in what it says. An ``Encoder`` writes records down; it is made once for each pair by a ``Format``,
and its bytes are shared by all subscribers that are told the same (``publication.encoded``).

Everything is an integer: ticks, lots, nanoseconds. Arrays are never changed after they were handed
over.
"""

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from exchange.instrument import Instrument
from exchange.units import units_to_amount
from mdgateway.book.reader import Touch
from mdgateway.feed.candles import Candle, Interval
from mdgateway.feed.ticker import Figures

Rows = npt.NDArray[np.int64]

FULL: int = -1
"""Level count of a view of every level the gateway keeps, up to
``full_depth_limit`` of each side."""


Place = int | tuple[int, int]
"""What a subscription is made with to go on: the number of a trade or notice; of depth the epoch
and sequence, of orders the epoch and position, that were taken last."""


class Channel(StrEnum):
    """The kinds of content that can be subscribed to."""

    DEPTH = "depth"
    TRADES = "trades"
    TICKER = "ticker"
    STATUS = "status"
    CANDLES = "candles"
    ORDERS = "orders"


class Topic(NamedTuple):
    """What one subscription is about; everybody of one topic and position is told the same."""

    channel: Channel
    pair: str
    detail: int = 0
    """DEPTH: levels a side, or FULL. CANDLES: the Interval. Otherwise 0."""


class NoticeKind(IntEnum):
    """What a notice is about; the numbers are those of the contract."""

    ENGINE_DOWN = 1
    ENGINE_RESTARTED = 2
    PAIR_STATUS = 3
    MISSED = 4
    TRADES_RESTARTED = 5


class DepthSnapshot(NamedTuple):
    """The best levels of both sides: forget what was held and take this."""

    epoch: int
    sequence: int
    time_ns: int
    bids: Rows
    """Best first: (price ticks, lots, orders)."""
    asks: Rows
    checksum: int
    """``mdgateway.book.checksum`` of the best levels."""


class DepthUpdate(NamedTuple):
    """What changed since the snapshot or update before."""

    epoch: int
    previous_sequence: int
    sequence: int
    time_ns: int
    changes: Rows
    """(side, price ticks, lots, orders), absolute; zero lots: gone, or out of the depth."""
    checksum: int
    """Of the best levels after the changes."""
    merged_count: int
    """How many updates of the view this one stands for: more than 1, the subscriber was slow."""


class TradeRun(NamedTuple):
    """Consecutive trades, oldest first, in rows of ``trade_log``."""

    epoch: int
    rows: Rows


class TickerState(NamedTuple):
    """Best prices, last trade, figures of the day and of the last 24 hours."""

    epoch: int
    touch: Touch
    figures: Figures
    last_trade: Rows | None
    """Row of the last trade if it was seen as an event; else only `touch` knows of it."""
    status: int
    """PairStatus."""
    engine_state: int
    """EngineState of the contract."""


class PairState(NamedTuple):
    """What the pair accepts and how its engine is."""

    epoch: int
    sequence: int
    status: int
    """PairStatus; zero before anything was read."""
    engine_state: int
    """EngineState of the contract; zero while no engine is live."""
    time_ns: int
    """Time of the newest event that is included."""
    ready: bool
    """Whether there is a book to tell."""
    trade_count: int
    """Number of the newest trade."""


class CandleRun(NamedTuple):
    """Candles of one interval, oldest first; a snapshot replaces what was held."""

    epoch: int
    sequence: int
    interval: Interval
    candles: tuple[Candle, ...]
    is_snapshot: bool


class OrderPart(NamedTuple):
    """One part of a snapshot of all orders; the first part replaces whatever was held."""

    epoch: int
    sequence: int
    position: int
    """Events below this position are included."""
    part: int
    is_last: bool
    orders: Rows
    """Rows of ``mdgateway.book.orders`` (ORDER_COLUMNS): best price first, then by turn."""
    unknown: Rows
    """Rows of UNKNOWN_COLUMNS: what levels hold beyond the orders told, in front of these."""


class OrderRun(NamedTuple):
    """Consecutive order events, oldest first, in rows of ``mdgateway.book.orders``."""

    epoch: int
    previous_position: int
    position: int
    """Events below this position are included."""
    rows: Rows
    more_follows: bool
    """Whether the rest of what has happened comes with the next message."""


class Notice(NamedTuple):
    """Something that concerns the stream as a whole; comes before the content it concerns."""

    kind: NoticeKind
    epoch: int
    engine_state: int
    status: int
    missed_count: int
    message: str
    next_trade_number: int = 0
    """MISSED trades and TRADES_RESTARTED: the trade that the stream goes on with."""


class Heartbeat(NamedTuple):
    """Said in silence."""

    time_ns: int
    """Wall clock of the publication's last step: it stands still when stepping does."""
    position: int
    """Sequence, or number of the newest trade, that the stream has reached."""


class Goodbye(NamedTuple):
    """The last message of a stream."""

    reason: str
    resume_from: int


Record = (
    DepthSnapshot
    | DepthUpdate
    | TradeRun
    | TickerState
    | PairState
    | CandleRun
    | OrderPart
    | OrderRun
    | Notice
    | Heartbeat
    | Goodbye
)


class Encoder(Protocol):
    """Writes the records of one pair down; the same record always gives the same bytes."""

    def encode(self, topic: Topic, record: Record) -> bytes:
        """Return one whole message of a stream of `topic`."""


Format = Callable[[Instrument], Encoder]
"""Makes a pair's encoder; the object itself is the key of the shared encodings."""


def _without_zeros(units: int, decimals: int) -> tuple[int, int]:
    """Return a factor and its decimals with the zeros at its end taken off."""
    while decimals > 0 and units % 10 == 0:
        units, decimals = units // 10, decimals - 1
    return units, decimals


def _pattern(decimals: int) -> tuple[str, int]:
    """Return how a quotient and rest by the scale are written, and the scale."""
    return (f"%d.%0{decimals}d" if decimals else "%d%.0s"), 10**decimals


class Texts:
    """Prices, quantities and amounts of one instrument as decimal text; every format uses it."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self._tick, self.price_decimals = _without_zeros(
            instrument.tick_quote_units, instrument.quote_decimals
        )
        self._lot, self.quantity_decimals = _without_zeros(
            instrument.base_units_per_lot, instrument.base_decimals
        )
        # A book of every level has tens of thousands of them, so this is made as cheap as can be.
        self._price, self._price_scale = _pattern(self.price_decimals)
        self._quantity, self._quantity_scale = _pattern(self.quantity_decimals)

    def price(self, ticks: int) -> str:
        """Return a price, which is not negative."""
        return self._price % divmod(ticks * self._tick, self._price_scale)

    def quantity(self, lots: int) -> str:
        """Return a quantity, which is not negative."""
        return self._quantity % divmod(lots * self._lot, self._quantity_scale)

    def amount(self, quote_units: int) -> str:
        """Return a quote amount."""
        return units_to_amount(self.instrument.quote_decimals, quote_units)

    def turnover(self, tick_lots: int) -> str:
        """Return a sum of ticks times lots as a quote amount."""
        return self.amount(tick_lots * self.instrument.quote_units_per_tick_lot)
