"""How much an order needs to be free in its pair, in which asset, as the kernel will look at it.

Pure: integers of a packed record, the instrument, the book's levels and the refusal. The rules are
those of docs/trading-rules.md, "Fees, holds, funds".

A refusal for want of funds says what had to be free, at the account's own rates. That of an account
which the pair never had money of says nothing; such an account will have the pair's own rates. The
kernel lets a market order in that can pay for one lot; it is given what the whole would cost at the
levels the book shows, and at the worst of them for what is beyond.

An order that the kernel would refuse for another reason needs nothing here: its need is None.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from exchange.enums import Asset, CommandKind, OrderType, Reason, Side
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.records import E_HOLD_RATE, E_NEEDED, E_NEEDED_ASSET, E_VERB

MILLION: Final = 1_000_000

MARKETS: Final = (int(OrderType.MARKET), int(OrderType.MARKET_BY_AMOUNT))
"""Types of orders that are measured by the book."""

Record = tuple[int, int, int, int]
"""The four words of a packed record."""
Levels = tuple[tuple[int, int], ...]
"""(price in ticks, lots) of one side of the book, best first."""


class Terms(NamedTuple):
    """What a packed record says, field by field."""

    client_order_id: int
    order_id: int
    quantity: int
    price_ticks: int
    kind: int
    side: int
    order_type: int
    flags: int


class Need(NamedTuple):
    """What has to be free."""

    asset: Asset
    units: int


class Book(NamedTuple):
    """What the book shows; only market orders are measured by it."""

    bids: Levels = ()
    asks: Levels = ()


def terms_of(record: Record) -> Terms:
    """Return the fields of a packed record."""
    client_order_id, order_id, quantity, shape = record
    return Terms(
        client_order_id,
        order_id,
        quantity,
        shape & 0xFFFFFFFF,
        (shape >> 32) & 0xF,
        (shape >> 36) & 0xF,
        (shape >> 40) & 0xF,
        (shape >> 56) & 0xFF,
    )


def _hold_rate_ppm(instrument: Instrument) -> int:
    """Return the hold rate of an account that has no fee rates of its own."""
    return max(instrument.taker_fee_ppm, instrument.maker_fee_ppm, 0)


def buy_hold_per_lot(instrument: Instrument, price_ticks: int, rate_ppm: int) -> int:
    """Return what a buy of one lot holds in quote units: its worth and the fee, rounded up."""
    worth = price_ticks * instrument.quote_units_per_tick_lot
    return worth - (-worth * rate_ppm) // MILLION


def need_of(
    instrument: Instrument, terms: Terms, refused: Sequence[int], book: Book
) -> Need | None:
    """Return what a new order or an amendment needs to be free.

    `refused` are the words of the execution that refused it, INSUFFICIENT_FUNDS or ACCOUNT_UNKNOWN.
    """
    need = None
    if (refused[E_VERB] >> 8) & 0xFF == Reason.INSUFFICIENT_FUNDS:
        need = Need(Asset(refused[E_NEEDED_ASSET]), refused[E_NEEDED])
        if terms.kind == CommandKind.NEW_ORDER and terms.order_type in MARKETS:
            whole = _new_order(instrument, terms, refused[E_HOLD_RATE], book)
            need = whole if whole is not None and whole.units > need.units else need
    elif terms.kind == CommandKind.NEW_ORDER and terms.client_order_id >= 1:
        need = _new_order(instrument, terms, _hold_rate_ppm(instrument), book)
    return need if need is not None and 1 <= need.units <= AMOUNT_LIMIT_UNITS else None


def _hold(instrument: Instrument, side: int, price_ticks: int, lots: int, rate_ppm: int) -> int:
    if side == Side.SELL:
        return lots * instrument.base_units_per_lot
    return lots * buy_hold_per_lot(instrument, price_ticks, rate_ppm)


def _priced(instrument: Instrument, price_ticks: int, lots: int) -> bool:
    fits = 1 <= price_ticks < instrument.price_capacity_ticks
    return fits and 1 <= lots <= instrument.quantity_limit_lots


def _asset(side: int) -> Asset:
    return Asset.QUOTE if side == Side.BUY else Asset.BASE


def _new_order(instrument: Instrument, terms: Terms, rate_ppm: int, book: Book) -> Need | None:
    side, quantity = terms.side, terms.quantity
    if side not in (Side.BUY, Side.SELL) or quantity < 1:
        return None
    if terms.order_type == OrderType.LIMIT:
        if not _priced(instrument, terms.price_ticks, quantity):
            return None
        return Need(_asset(side), _hold(instrument, side, terms.price_ticks, quantity, rate_ppm))
    if terms.order_type == OrderType.MARKET_BY_AMOUNT:
        if side == Side.BUY:
            return Need(Asset.QUOTE, quantity)
        lots = _lots_worth(instrument, book.bids, quantity)
        return Need(Asset.BASE, lots * instrument.base_units_per_lot)
    if terms.order_type == OrderType.MARKET and quantity <= instrument.quantity_limit_lots:
        if side == Side.SELL:
            return Need(Asset.BASE, quantity * instrument.base_units_per_lot)
        return Need(Asset.QUOTE, _cost(instrument, book.asks, quantity, rate_ppm))
    return None


def _cost(instrument: Instrument, asks: Levels, lots: int, rate_ppm: int) -> int:
    """Return what buying so many lots costs at most; 0 when nothing is offered."""
    units, price_ticks = 0, 0
    for price_ticks, offered in asks:
        taken = min(lots, offered)
        units += taken * buy_hold_per_lot(instrument, price_ticks, rate_ppm)
        lots -= taken
        if lots == 0:
            return units
    return units + lots * buy_hold_per_lot(instrument, price_ticks, rate_ppm)


def _lots_worth(instrument: Instrument, bids: Levels, amount_units: int) -> int:
    """Return how many lots have to be sold to earn an amount; 0 when nobody buys."""
    lots, worth = 0, 0
    for price_ticks, wanted in bids:
        worth = price_ticks * instrument.quote_units_per_tick_lot
        sold = min(wanted, -(-amount_units // worth))
        lots += sold
        amount_units -= sold * worth
        if amount_units <= 0:
            return lots
    return lots + (-(-amount_units // worth) if worth else 0)
